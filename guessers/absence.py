"""Fields that are not there, told only with proof, and fields this kernel says nothing about."""

from __future__ import annotations

import gzip
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from guessers.namespace import NETNS
from kcompat.fields import Field, find

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
    """The proof that the running kernel was built without the field; None without proof, which says nothing."""
    option = _NEEDS.get(field)
    if option is None or (option == "CONFIG_IPV6" and has_ipv6()) or (option == "CONFIG_NET_NS" and NETNS.exists()):
        return None
    release = os.uname().release
    paths = (Path("/proc/config.gz"), Path(f"/boot/config-{release}"), Path(f"/lib/modules/{release}/config"))
    if field.struct == "nf_conn" and denied("CONFIG_NF_CONNTRACK", paths):
        return None  # there is no such struct at all, and nobody to ask about its members
    denial = denied(option, paths)
    return f"the kernel is built without {option}: {denial}" if denial else None


def denied(option: str, paths: Iterable[Path]) -> str | None:
    """The first of the configurations that can be read, if it says the option is off."""
    for path in paths:
        with suppress(OSError, EOFError):
            raw = path.read_bytes()
            lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(errors="replace").splitlines()
            return str(path) if f"# {option} is not set" in lines else None
    return None


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
