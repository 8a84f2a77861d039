"""Collects the samples of one guess: sockets in every state worth seeing, and the routing keys their sends made."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from guessers.facts import SO_MARK, SO_PROTOCOL, Facts, exact, facts, settled
from guessers.haul import Haul
from guessers.memory import KernelMemory, ReadFault
from guessers.pointers import SockSample
from guessers.search import Encodings, Sample
from guessers.stimulus import End, Stimulus
from kcompat.fields import Field, find

WINDOW = 4096
_HEAD = 1024  # struct sock, without what protocols add to it
_SO_DETACH_FILTER = 27
_SLABS = {
    (socket.AF_INET, socket.SOCK_STREAM): "TCP", (socket.AF_INET6, socket.SOCK_STREAM): "TCPv6",
    (socket.AF_INET, socket.SOCK_DGRAM): "UDP", (socket.AF_INET6, socket.SOCK_DGRAM): "UDPv6",
    (socket.AF_INET, socket.SOCK_RAW): "RAW", (socket.AF_INET6, socket.SOCK_RAW): "RAWv6",
    (socket.AF_UNIX, socket.SOCK_DGRAM): "UNIX",
}


class Sampler:
    """Pairs our sockets with their kernel objects and reads both sides of the truth."""

    def __init__(self, memory: KernelMemory, stimulus: Stimulus, netns: int, haul: Haul) -> None:
        self.memory = memory
        self.stimulus = stimulus
        self.netns = netns
        self.haul = haul

    @property
    def direct(self) -> bool:
        """Whether a hook names a socket when asked to."""
        return bool(self.memory.hook("getsockopt") or self.memory.hook("send_length"))

    def watch(self, act: Callable[[], object]) -> list[tuple[int, ...]]:
        """Does `act` and returns the arguments of the sock hooks it hit, oldest first."""
        self.memory.clear()
        with suppress(BlockingIOError, ConnectionRefusedError):
            act()
        return [call.args for call in self.memory.calls() if call.hook.object == "sk"]

    def pointer(self, end: End) -> int | None:
        """The ``struct sock *`` behind a socket of ours, by an operation that hands it to a hook and no more."""
        if end.sock.family == socket.AF_UNIX and self.memory.hook("detach_filter"):
            calls = self.watch(lambda: _detach_no_filter(end.sock))
        elif end.sock.family != socket.AF_UNIX and self.memory.hook("getsockopt"):
            calls = self.watch(lambda: _any_getsockopt(end.sock))
        elif self.memory.hook("send_length"):
            calls = self.watch(lambda: _refused_send(end.sock))
        else:
            return None
        return calls[-1][0] if calls else None

    def take(self, end: End, address: int | None = None, untold: frozenset[Field] = frozenset()) -> None:
        """Adds a sample of this socket without the facts that are `untold`, or counts why there is none."""
        address = address or self.pointer(end)
        if address is None:
            self.haul.miss(f"no hook named the sock of {end.label}")
            return
        try:
            window, known = settled(lambda: facts(end.sock, bound_dev_if=end.bound_dev_if),
                                    lambda: self.memory.read(address, WINDOW))
        except ReadFault as error:
            self.haul.miss(f"{end.label}: {error}")
            return
        if not _is_his(window, known):
            self.haul.miss(f"the hook named another sock than that of {end.label}")
            return
        known = {field: codes for field, codes in known.items() if field not in untold}
        sample = Sample(window, known, _object_size(end.sock), end.label)
        self.haul.socks.append(SockSample(sample, address, self.netns, os.fstat(end.sock.fileno()).st_ino))

    def is_his(self, end: End, address: int) -> bool:
        """Whether the sock at `address` can be that of our socket."""
        try:
            return _is_his(self.memory.read(address, _HEAD), facts(end.sock, bound_dev_if=end.bound_dev_if))
        except ReadFault:
            return False

    def take_flow(self, end: End, act: Callable[[], object], local: tuple[str, int], remote: tuple[str, int]) -> None:
        """Does `act`, which routes from `local` to `remote`, and keeps the routing key it put on its stack."""
        name = "flowi4" if end.sock.family == socket.AF_INET else "flowi6"
        if not self.memory.has(name):
            act()
            return
        known = flow_facts(end, local, remote)
        self.memory.clear()
        with suppress(BlockingIOError):
            act()
        telling = [codes for codes in known.values() if len(codes[0]) >= 2 and any(codes[0])]
        key = whole_key([copy.data for copy in self.memory.copies() if copy.hook.object == name], telling)
        if key is None:
            self.haul.miss(f"no hook copied the {name} of {end.label}")
        else:
            self.haul.flows[name].append(Sample(key, known, None, end.label))


def _is_his(window: bytes, known: Facts) -> bool:
    """Whether the window is this socket's: a mark of 31 random bits, or else the port, stands somewhere in it.

    Softirqs run in our thread too, so a transition seen there can be that of anybody's socket.
    """
    codes = known.get(find("sk_mark")) or known.get(find("skc_num")) or (b"",)
    return any(code in window for code in codes)


def whole_key(copies: Iterable[bytes], telling: Collection[Encodings]) -> bytes | None:
    """The copy that holds all we chose, in fewest bytes from its beginning; None when none does.

    Address checks and the loopback's input side route too, by keys that lack some of it. A copy reaches beyond the
    key, though, and what lies behind one on the stack may be left of a key of ours.
    """
    whole = [copy for copy in copies if all(any(c in copy for c in codes) for codes in telling)]
    return min(whole, key=partial(_end_of_all, telling), default=None)


def _end_of_all(telling: Iterable[Encodings], copy: bytes) -> int:
    """Where the last of the values ends, each of which is there."""
    return max((min(copy.find(c) + len(c) for c in codes if c in copy) for codes in telling), default=0)


def flow_facts(end: End, local: tuple[str, int], remote: tuple[str, int]) -> Facts:
    """What stands in the routing key of a send: addresses, ports, protocol, interface and mark."""
    sock = end.sock
    name = "flowi4" if sock.family == socket.AF_INET else "flowi6"
    known = {
        find(f"{name}.saddr"): (socket.inet_pton(sock.family, local[0]),),
        find(f"{name}.daddr"): (socket.inet_pton(sock.family, remote[0]),),
        find(f"{name}.flowi_proto"): exact(sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL), 1),
        find(f"{name}.flowi_oif"): exact(end.bound_dev_if, 4),
        find(f"{name}.flowi_mark"): exact(sock.getsockopt(socket.SOL_SOCKET, SO_MARK) & 0xFFFF_FFFF, 4),
    }
    if sock.type != socket.SOCK_RAW:
        known[find(f"{name}.sport")] = exact(local[1], 2, "big")
        known[find(f"{name}.dport")] = exact(remote[1], 2, "big")
    return known


def _any_getsockopt(sock: socket.socket) -> None:
    level, option = {
        socket.SOCK_STREAM: (socket.IPPROTO_TCP, socket.TCP_MAXSEG),
        socket.SOCK_DGRAM: (socket.IPPROTO_UDP, 1),  # UDP_CORK
        socket.SOCK_RAW: (255, 1),  # SOL_RAW, ICMP_FILTER: refused, after the hook
    }[socket.SocketKind(sock.type)]
    with suppress(OSError):
        sock.getsockopt(level, option)


def _detach_no_filter(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _refused_send(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.send(b"", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _object_size(sock: socket.socket) -> int | None:
    """The slab object's size, where SLUB shows it: nothing of the socket lies behind it."""
    return slab_object_size(_SLABS[(socket.AddressFamily(sock.family), socket.SocketKind(sock.type))])


@cache
def slab_object_size(name: str) -> int | None:
    try:
        return int(Path(f"/sys/kernel/slab/{name}/object_size").read_text())
    except (OSError, ValueError):
        return None


