"""What a socket says of itself through the system call interface: the known values a guess looks for."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress

from guessers import sockdiag
from guessers.search import Encodings
from kcompat.fields import Field, find

SO_MARK, SO_PROTOCOL, SO_COOKIE = 36, 38, 57
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_WINDOW = 19, 20, 21, 29
_RECV_QUEUE, _SEND_QUEUE = 1, 2
_BEHIND = 1009  # any number: no window of ours is that far behind by itself
_SIOCINQ, _SIOCOUTQ, _SIOCOUTQNSD = 0x541B, 0x5411, 0x894B
# Values of the kernel's include/net/tcp_states.h.
TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_CLOSE, TCP_LISTEN = 1, 2, 3, 7, 10

Facts = Mapping[Field, Encodings]


def exact(value: int, width: int, order: str = "little", *, signed: bool = False) -> Encodings:
    return (value.to_bytes(width, "little" if order == "little" else "big", signed=signed),)


def shifted(value: int, bits: int, width: int = 4) -> Encodings:
    """All numbers that become `value` when shifted right: what is left of a finer kernel value."""
    return tuple((value << bits | low).to_bytes(width, "little") for low in range(1 << bits))


def facts(sock: socket.socket, *, bound_dev_if: int) -> dict[Field, Encodings]:
    """Everything this socket can tell. `bound_dev_if` is what the caller bound it to, which it cannot be asked."""
    known: dict[Field, Encodings] = {
        find("skc_family"): exact(sock.family, 2),
        find("sk_type"): exact(sock.type, 2),
        find("sk_protocol"): exact(sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL) & 0xFF, 1),
        find("sk_rcvbuf"): exact(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), 4),
        find("sk_sndbuf"): exact(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 4),
        find("skc_bound_dev_if"): exact(bound_dev_if, 4),
    }
    if mark := sock.getsockopt(socket.SOL_SOCKET, SO_MARK) & 0xFFFF_FFFF:
        known[find("sk_mark")] = exact(mark, 4)
    with suppress(OSError):
        known[find("skc_cookie")] = (_cookie(sock, bound_dev_if),)
    if sock.family == socket.AF_UNIX:
        return known
    if sock.type == socket.SOCK_RAW:
        return known | _addresses(sock)
    known |= _addresses(sock) | _ports(sock)
    if sock.type == socket.SOCK_STREAM:
        known |= tcp_facts(sock)
    else:
        state = TCP_ESTABLISHED if _peer(sock) else TCP_CLOSE
        known[find("skc_state")] = exact(state, 1)
    return known


def _cookie(sock: socket.socket, bound_dev_if: int) -> bytes:
    """From the socket itself, which tells it since 4.12; before that sock_diag does, of TCP. Raises OSError."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
    except OSError:
        if (sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM
                or not sockdiag.answers()):
            raise
    return sockdiag.cookie(sock, bound_dev_if=bound_dev_if)


def settled(read_facts: Callable[[], dict[Field, Encodings]], window: Callable[[], bytes]) -> tuple[bytes, Facts]:
    """A window, and the facts that were the same before and after it was read: nothing else counts."""
    before = read_facts()
    data = window()
    after = read_facts()
    return data, {field: value for field, value in before.items() if after.get(field) == value}


def _peer(sock: socket.socket) -> tuple[str, int] | None:
    try:
        name = sock.getpeername()
    except OSError:
        return None
    return name[0], name[1]


def _addresses(sock: socket.socket) -> dict[Field, Encodings]:
    local, peer = sock.getsockname()[0], _peer(sock)
    packed = socket.inet_pton(sock.family, local)
    known: dict[Field, Encodings] = {}
    if sock.family == socket.AF_INET:
        known[find("skc_rcv_saddr")] = (packed,)
        # __inet_bind(): a multicast address is received on, not sent from. This is what tells the two apart.
        known[find("inet_saddr")] = (bytes(4),) if packed[0] in range(224, 240) else (packed,)
        if peer or sock.type != socket.SOCK_RAW:  # a raw socket does not tell its peer
            known[find("skc_daddr")] = (socket.inet_pton(socket.AF_INET, peer[0] if peer else "0.0.0.0"),)
    else:
        known[find("skc_v6_rcv_saddr")] = (packed,)
        if peer:
            known[find("skc_v6_daddr")] = (socket.inet_pton(socket.AF_INET6, peer[0]),)
    return known


def _ports(sock: socket.socket) -> dict[Field, Encodings]:
    port, peer = sock.getsockname()[1], _peer(sock)
    return {
        find("skc_num"): exact(port, 2),
        find("inet_sport"): exact(port, 2, "big"),
        find("skc_dport"): exact(peer[1] if peer else 0, 2, "big"),
    }


def tcp_facts(sock: socket.socket) -> dict[Field, Encodings]:
    """From struct tcp_info (uapi/linux/tcp.h), which only grows at its end; a short one says less."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    known: dict[Field, Encodings] = {find("skc_state"): exact(info[0], 1)}
    if info[0] == TCP_LISTEN or len(info) < 104:
        return known
    rtt, rttvar = struct.unpack_from("<II", info, 68)
    known[find("srtt_us")] = shifted(rtt, 3)
    known[find("mdev_us")] = shifted(rttvar, 2)
    known[find("total_retrans")] = exact(struct.unpack_from("<I", info, 100)[0], 4)
    if len(info) >= 136:
        acked, received = struct.unpack_from("<QQ", info, 120)
        known[find("bytes_acked")] = exact(acked, 8)
        known[find("bytes_received")] = exact(received, 8)
    if len(info) >= 144:
        segs_out, segs_in = struct.unpack_from("<II", info, 136)
        known[find("segs_out")] = exact(segs_out, 4)
        known[find("segs_in")] = exact(segs_in, 4)
    with suppress(OSError):  # TCP_REPAIR asks for CAP_NET_ADMIN over the namespace
        if info[0] == TCP_ESTABLISHED:
            known |= _sequence_numbers(sock)
        elif info[0] == TCP_CLOSE:
            known |= _planted_numbers(sock)
    return known


def plant_numbers(sock: socket.socket, numbers: tuple[int, int]) -> None:
    """Gives a closed socket rcv_nxt and write_seq, and nothing that is equal to them. Raises OSError.

    In a connection a copy can stay equal all the time: rcv_wup, what the last acknowledgment said, where data is
    acknowledged at once or by a timer long since, and nothing sets it apart, as before 4.8.
    """
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    for queue, number in zip((_RECV_QUEUE, _SEND_QUEUE), numbers, strict=True):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, struct.pack("<I", number))


def _sequence_numbers(sock: socket.socket) -> dict[Field, Encodings]:
    """TCP_REPAIR tells rcv_nxt and write_seq (tcp(7)); the queue lengths tell how far the others are behind.

    The socket stays in repair mode: it sends nothing more, which keeps the values still.
    """
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    rcv_nxt, write_seq = _queue_ends(sock)
    with suppress(OSError):  # TCP_REPAIR_WINDOW is there since 4.8
        _leave_behind(sock, (rcv_nxt - _BEHIND) & 0xFFFF_FFFF)
    unread, unacked, unsent = (_queued(sock, request) for request in (_SIOCINQ, _SIOCOUTQ, _SIOCOUTQNSD))
    return {
        find("rcv_nxt"): exact(rcv_nxt, 4),
        find("write_seq"): exact(write_seq, 4),
        find("copied_seq"): exact((rcv_nxt - unread) & 0xFFFF_FFFF, 4),
        find("snd_una"): exact((write_seq - unacked) & 0xFFFF_FFFF, 4),
        find("snd_nxt"): exact((write_seq - unsent) & 0xFFFF_FFFF, 4),
    }


def _planted_numbers(sock: socket.socket) -> dict[Field, Encodings]:
    """What `plant_numbers` gave this closed socket; OSError where it gave nothing, for then it is not in repair."""
    rcv_nxt, write_seq = _queue_ends(sock)
    return {find("rcv_nxt"): exact(rcv_nxt, 4), find("write_seq"): exact(write_seq, 4)}


def _queue_ends(sock: socket.socket) -> tuple[int, int]:
    """rcv_nxt and write_seq of a socket in repair mode."""
    ends = []
    for queue in (_RECV_QUEUE, _SEND_QUEUE):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        ends.append(sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFF_FFFF)
    return ends[0], ends[1]


def _leave_behind(sock: socket.socket, rcv_wup: int) -> None:
    """Sets rcv_wup, what the last acknowledgment said, apart from rcv_nxt.

    Left alone it equals rcv_nxt 40 ms after data has come, and so in every sample of a machine that is slow.
    """
    # struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    *others, _ = struct.unpack("<5I", sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR_WINDOW, 20))
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_WINDOW, struct.pack("<5I", *others, rcv_wup))


def _queued(sock: socket.socket, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))[0])
