"""The catalogue: every kernel field kcompat knows about, one `Field` each; all else derives from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from kcompat.errors import KcompatError

ByteOrder = Literal["host", "net"]

CONNTRACK = "nf_conntrack"
"""The module that tracks connections."""


@dataclass(frozen=True, slots=True)
class Field:
    """One fact to know about a kernel: where a member lies in a struct.

    `paths` are member paths inside `struct`, newest name first; a path may descend through structs
    with dots and never names anonymous members. `widths` are the sizes in bytes it may have, the usual
    one first. `base` is the object whose address a program adds the offset to.
    """

    struct: str
    member: str
    c_type: str
    widths: tuple[int, ...]
    paths: tuple[str, ...]
    base: str
    byte_order: ByteOrder = "host"
    signed: bool = False
    optional: bool = False
    module: str | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The dotted name users see: ``sock_common.skc_dport``."""
        return f"{self.struct}.{self.member}"

    @property
    def macro(self) -> str:
        """The name BPF C uses with READ(): ``sock_common__skc_dport``."""
        return f"{self.struct}__{self.member.replace('.', '__')}"

    @property
    def width(self) -> int:
        """The usual width in bytes."""
        return self.widths[0]

    def may_be(self, width: int | None, *, is_bitfield: bool) -> bool:
        """Whether a member of that many bytes can be this field: a bitfield is in any at least as wide."""
        return (width or 0) <= max(self.widths) if is_bitfield else width in self.widths

    def __str__(self) -> str:
        return self.name


def _sock_common(member: str, c_type: str, width: int, *paths: str, net: bool = False, optional: bool = False,
                 signed: bool = False, note: str = "") -> Field:
    return Field("sock_common", member, c_type, (width,), paths or (member,), "sock", "net" if net else "host",
                 signed, optional, None, note)


def _sock(member: str, c_type: str, *widths: int, struct: str = "sock", net: bool = False, signed: bool = False,
          optional: bool = False, note: str = "") -> Field:
    return Field(struct, member, c_type, widths, (member,), "sock", "net" if net else "host", signed, optional,
                 None, note)


def _tcp(member: str, width: int = 4, note: str = "", optional: bool = False) -> Field:
    c_type = {4: "u32", 8: "u64"}[width]
    return _sock(member, c_type, width, struct="tcp_sock", note=note, optional=optional)


def _flow(struct: str, member: str, c_type: str, width: int, path: str, net: bool = False,
          signed: bool = False, optional: bool = False) -> Field:
    return Field(struct, member, c_type, (width,), (path,), struct, "net" if net else "host", signed, optional)


def _flow_fields(struct: str, address: str, width: int, optional: bool = False) -> tuple[Field, ...]:
    return (
        _flow(struct, "saddr", address, width, "saddr", net=True, optional=optional),
        _flow(struct, "daddr", address, width, "daddr", net=True, optional=optional),
        _flow(struct, "sport", "__be16", 2, "uli.ports.sport", net=True, optional=optional),
        _flow(struct, "dport", "__be16", 2, "uli.ports.dport", net=True, optional=optional),
        _flow(struct, "flowi_proto", "__u8", 1, "__fl_common.flowic_proto", optional=optional),
        _flow(struct, "flowi_oif", "int", 4, "__fl_common.flowic_oif", signed=True, optional=optional),
        _flow(struct, "flowi_mark", "__u32", 4, "__fl_common.flowic_mark", optional=optional),
    )


def _skb(member: str, c_type: str, width: int, *paths: str, net: bool = False, optional: bool = False,
         note: str = "") -> Field:
    return Field("sk_buff", member, c_type, (width,), paths or (member,), "sk_buff", "net" if net else "host",
                 False, optional, None, note)


def _conntrack(struct: str, member: str, c_type: str, width: int, *paths: str, net: bool = False,
               optional: bool = False, note: str = "") -> Field:
    return Field(struct, member, c_type, (width,), paths or (member,), struct, "net" if net else "host", False,
                 optional, CONNTRACK, note)


def _own(struct: str, member: str, c_type: str, width: int, *paths: str, signed: bool = False,
         optional: bool = False, note: str = "") -> Field:
    return Field(struct, member, c_type, (width,), paths or (member,), struct, "host", signed, optional, None, note)


CATALOGUE: tuple[Field, ...] = (
    _sock_common("skc_daddr", "__be32", 4, net=True),
    _sock_common("skc_rcv_saddr", "__be32", 4, net=True),
    _sock_common("skc_dport", "__be16", 2, net=True),
    _sock_common("skc_num", "__u16", 2),
    _sock_common("skc_family", "unsigned short", 2),
    _sock_common("skc_state", "volatile unsigned char", 1),
    # possible_net_t since 4.1 (kernel commit 0c5c9fb55106); an empty struct without CONFIG_NET_NS.
    _sock_common("skc_net", "struct net *", 8, "skc_net.net", "skc_net", optional=True),
    _sock_common("skc_v6_daddr", "struct in6_addr", 16, net=True, optional=True, note="CONFIG_IPV6"),
    _sock_common("skc_v6_rcv_saddr", "struct in6_addr", 16, net=True, optional=True, note="CONFIG_IPV6"),
    # atomic64_t since 4.1 (kernel commit 33cf7c90fe2f); not there before.
    _sock_common("skc_cookie", "atomic64_t", 8, optional=True),
    _sock_common("skc_bound_dev_if", "int", 4, signed=True),
    _sock("sk_type", "u16", 2, note="a bitfield before 5.6 (kernel commit bf9765145b85)"),
    _sock("sk_protocol", "u16", 2, 1, note="an 8-bit bitfield before 5.6 (kernel commit bf9765145b85)"),
    _sock("sk_socket", "struct socket *", 8),
    _sock("sk_mark", "__u32", 4),
    _sock("sk_rcvbuf", "int", 4, signed=True),
    _sock("sk_sndbuf", "int", 4, signed=True),
    _sock("inet_saddr", "__be32", 4, struct="inet_sock", net=True),
    _sock("inet_sport", "__be16", 2, struct="inet_sock", net=True),
    _tcp("srtt_us", note="smoothed round trip time, us << 3"),
    _tcp("mdev_us", note="medium deviation of it, us << 2"),
    _tcp("copied_seq"),
    _tcp("write_seq"),
    _tcp("rcv_nxt"),
    _tcp("snd_nxt"),
    _tcp("snd_una"),
    _tcp("segs_in", optional=True),
    _tcp("segs_out", optional=True),
    _tcp("bytes_acked", 8, optional=True),
    _tcp("bytes_received", 8, optional=True),
    _tcp("total_retrans"),
    # ns_common.inum since 3.19 (kernel commit 435d5f4bb2cc); net.proc_inum before.
    Field("net", "ns.inum", "unsigned int", (4,), ("ns.inum", "proc_inum"), "net", optional=True),
    *_flow_fields("flowi4", "__be32", 4),
    *_flow_fields("flowi6", "struct in6_addr", 16),
    _own("socket", "sk", "struct sock *", 8),
    _own("socket", "file", "struct file *", 8),
    _own("socket", "type", "short", 2, signed=True),
    _own("socket", "ops", "const struct proto_ops *", 8),
    _own("file", "private_data", "void *", 8, note="a socket's file: its struct socket *"),
    _own("file", "f_inode", "struct inode *", 8),
    _own("task_struct", "files", "struct files_struct *", 8),
    _own("files_struct", "fdt", "struct fdtable *", 8),
    _own("fdtable", "fd", "struct file **", 8, note="indexed by file descriptor"),
    _own("fdtable", "max_fds", "unsigned int", 4),
    _own("msghdr", "msg_name", "void *", 8),
    _own("msghdr", "msg_iter", "struct iov_iter", 40),
    # The member is called __iov since 6.4 (kernel commit de4f5fed3f23); from struct msghdr, as are the next three.
    _own("msghdr", "msg_iter.iov", "const struct iovec *", 8, "msg_iter.__iov", "msg_iter.iov",
         note="a user address is no iovec: it is msg_iter.ubuf"),
    # Since 6.0 (kernel commit fcb14cb1bdac): one buffer without an iovec, in the place of iov.
    _own("msghdr", "msg_iter.ubuf", "void *", 8, optional=True, note="in the place of iov, told apart by its address"),
    _own("msghdr", "msg_iter.count", "size_t", 8),
    _own("msghdr", "msg_iter.nr_segs", "unsigned long", 8),
    _skb("sk", "struct sock *", 8),
    _skb("dev", "struct net_device *", 8),
    _skb("head", "unsigned char *", 8),
    _skb("data", "unsigned char *", 8),
    _skb("len", "unsigned int", 4),
    _skb("protocol", "__be16", 2, net=True),
    _skb("mark", "__u32", 4),
    _skb("transport_header", "__u16", 2, note="bytes from head"),
    _skb("network_header", "__u16", 2, note="bytes from head"),
    _skb("mac_header", "__u16", 2, note="bytes from head"),
    # A struct nf_conn * with three flag bits since 4.12 (kernel commit a9e419dc7be6); the bare pointer, nfct, before.
    _skb("_nfct", "unsigned long", 8, "_nfct", "nfct", optional=True, note="CONFIG_NF_CONNTRACK"),
    _conntrack("nf_conn", "tuplehash0.tuple", "struct nf_conntrack_tuple", 40, "tuplehash[0].tuple"),
    _conntrack("nf_conn", "tuplehash1.tuple", "struct nf_conntrack_tuple", 40, "tuplehash[1].tuple"),
    _conntrack("nf_conn", "status", "unsigned long", 8),
    _conntrack("nf_conn", "mark", "u_int32_t", 4, optional=True, note="CONFIG_NF_CONNTRACK_MARK"),
    # A struct timer_list before 4.9 (kernel commit f330a7fdbe16), which is no number to read: then nobody knows it.
    _conntrack("nf_conn", "timeout", "u32", 4, note="jiffies at which it ends"),
    _conntrack("nf_conn", "ct_net", "struct net *", 8, "ct_net.net", "ct_net", optional=True),
    _conntrack("nf_conntrack_tuple", "src.u3", "union nf_inet_addr", 16, net=True),
    _conntrack("nf_conntrack_tuple", "src.u", "__be16", 2, net=True),
    _conntrack("nf_conntrack_tuple", "src.l3num", "u_int16_t", 2),
    _conntrack("nf_conntrack_tuple", "dst.u3", "union nf_inet_addr", 16, net=True),
    _conntrack("nf_conntrack_tuple", "dst.u", "__be16", 2, net=True),
    _conntrack("nf_conntrack_tuple", "dst.protonum", "u_int8_t", 1),
)

_BY_NAME = {f.name: f for f in CATALOGUE} | {f.macro: f for f in CATALOGUE}


# Members of one C union.
_UNIONS = (frozenset({"msghdr.msg_iter.iov", "msghdr.msg_iter.ubuf"}),)


def is_part(field: Field, whole: Field) -> bool:
    """Whether `field` is a member of the member `whole` is: it lies inside, and nothing else may."""
    return field.struct == whole.struct and field.member.startswith(whole.member + ".")


def in_one_union(one: Field, other: Field) -> bool:
    """Whether the two always lie at the same place."""
    return any({one.name, other.name} <= union for union in _UNIONS)


def structs(fields: Iterable[Field] = CATALOGUE) -> tuple[str, ...]:
    """The struct names of `fields`, each once, in catalogue order."""
    return tuple(dict.fromkeys(f.struct for f in fields))


@cache
def find(name: str) -> Field:
    """The field of that dotted name, macro or member name (when only one struct has it).

    Raises KcompatError when no field, or more than one, has the name.
    """
    if field := _BY_NAME.get(name):
        return field
    named = [f for f in CATALOGUE if f.member == name]
    if len(named) == 1:
        return named[0]
    if named:
        raise KcompatError(f"{name!r} is ambiguous: {', '.join(f.name for f in named)}")
    raise KcompatError(f"{name!r} is not in the catalogue; `kcompat resolve` lists every field")
