"""Fields that are not there, told only with proof, and fields this kernel says nothing about."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from guessers.namespace import NETNS
from kcompat.fields import Field, find

CONFIG = Path("/proc/config.gz")
_TRACKER = Path("/proc/sys/net/netfilter/nf_conntrack_max")
# Members that #ifdef takes out of their struct.
_NEEDS = {
    find("skc_net"): "CONFIG_NET_NS",
    find("skc_v6_daddr"): "CONFIG_IPV6",
    find("skc_v6_rcv_saddr"): "CONFIG_IPV6",
    find("ct_net"): "CONFIG_NET_NS",
    find("_nfct"): "CONFIG_NF_CONNTRACK",
    find("nf_conn.mark"): "CONFIG_NF_CONNTRACK_MARK",
}
# What tells a field's value, where that is younger than the field. The field may be there all the same.
_TOLD_BY = {
    find("skc_cookie"): "getsockopt(SO_COOKIE), which is there since 4.12, and by sock_diag, where the kernel "
                        "has inet_diag",
    find("bytes_acked"): "a longer TCP_INFO, which is there since 4.1",
    find("bytes_received"): "a longer TCP_INFO, which is there since 4.1",
    find("segs_in"): "a longer TCP_INFO, which is there since 4.2",
    find("segs_out"): "a longer TCP_INFO, which is there since 4.2",
    find("nf_conn.mark"): "ctnetlink, where the kernel keeps a mark of its connections",
}


def why_absent(field: Field) -> str | None:
    """The proof that the running kernel was built without the field; None without proof, which says nothing.

    A file in /boot is none: it is of the build of that release that was installed last, which may not run yet.
    """
    option = _NEEDS.get(field)
    if option is None or is_there(field) or (field.struct == "nf_conn" and _denies("CONFIG_NF_CONNTRACK")):
        return None  # without a tracker there is no struct nf_conn at all, and nobody to ask about its members
    return f"the kernel is built without {option}: {CONFIG}" if _denies(option) else None


def is_there(field: Field) -> bool:
    """Whether this kernel shows that it was built with what the field needs; False says nothing."""
    option = _NEEDS.get(field)
    if option is None:
        return False
    signs: dict[str, Callable[[], bool]] = {
        "CONFIG_IPV6": has_ipv6, "CONFIG_NET_NS": NETNS.exists, "CONFIG_NF_CONNTRACK": _TRACKER.exists}
    said = not _configuration(CONFIG).isdisjoint({f"{option}=y", f"{option}=m"})
    return said or (option in signs and signs[option]())


def _denies(option: str) -> bool:
    return f"# {option} is not set" in _configuration(CONFIG)


@cache
def _configuration(path: Path) -> frozenset[str]:
    """The lines of the running kernel's own; none where it does not tell."""
    with suppress(OSError, EOFError):
        return frozenset(gzip.decompress(path.read_bytes()).decode(errors="replace").splitlines())
    return frozenset()


def why_untold(field: Field) -> str | None:
    """Why nothing on this kernel tells the field's value."""
    if not has_ipv6() and (field.struct == "flowi6" or "_v6_" in field.member):
        return "this kernel opens no IPv6 socket, so there is nothing to look at"
    if not NETNS.exists() and field in (find("skc_net"), find("net.ns.inum")):
        return f"nothing leads to a struct net: {NETNS} is not there"
    if field in _TOLD_BY:
        return f"its value is told by {_TOLD_BY[field]}"
    return None


@cache
def has_ipv6() -> bool:
    """Whether an IPv6 socket can be opened: more is not needed, addresses are our own affair."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True
