"""Packets of ours: copied on their way, looked at again while they wait, with or without a tracked connection."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from guessers.conntrack import TRACKED, Tracker, nfct
from guessers.facts import SO_MARK, SO_PROTOCOL, TCP_CLOSE, exact
from guessers.memory import Copy, KernelMemory, ReadFault
from guessers.nfnetlink import Netfilter, Tuple, unavailable
from guessers.sampling import Sampler
from guessers.search import Encodings, Sample, is_object, lowest_pointer, pointers
from guessers.skbuff import BUFFER, ETHERTYPES, SIZE, Packet, Wire
from guessers.stimulus import End
from kcompat.fields import Field, find
from kcompat.open_files import readable

_IP_OPTIONS = 4
# SO_NO_CHECK; UDP_NO_CHECK6_TX and UDP_NO_CHECK6_RX, as IPv6 takes no datagram without a checksum unless told to.
_NO_CHECKSUM: dict[int, tuple[tuple[int, int], ...]] = {socket.AF_INET: ((socket.SOL_SOCKET, 11),),
                socket.AF_INET6: ((socket.IPPROTO_UDP, 101), (socket.IPPROTO_UDP, 102))}
_UNKNOWN_ETHERTYPES = range(0x9A00, 0xFE00)  # nobody listens to them
_PATIENCE_S = 0.5
_ENTRIES = 18  # so many that the families of their tuples, in any order, show a pattern
_EACH = 4  # datagrams, and TCP segments, a family and round
_FEW = 4  # of them in a second namespace, which is there for its own sake


@dataclass(slots=True)
class Post:
    """Sends packets through one namespace and keeps what can be seen of them."""

    sampler: Sampler
    rng: random.Random
    families: Sequence[int]
    tracker: Tracker | None = None

    @property
    def tossed(self) -> bool:
        """Whether a packet is of the one family or the other by the toss of a coin."""
        return len(self.families) > 1

    def send(self, each: int, entries: int) -> None:
        """So many datagrams and TCP segments of each family, and packets of tracked connections.

        In any order: the order of the families is what no other place in memory knows.
        """
        for family in self._order(each * len(self.families)):
            self._try("a datagram", partial(self._datagram, family))
        for family in self._order(each * len(self.families)):
            self._try("a TCP segment", partial(self._segment, family))
        for family in self._order(entries) if self.tracker else ():
            self._try("a tracked connection", partial(self._of_entry, family))

    def send_frames(self, count: int) -> None:
        """Frames with protocol numbers and lengths that nothing else has; where there is one family only."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            for _ in range(count):
                self._try("a frame", partial(self._frame, sock))

    def _order(self, count: int) -> list[int]:
        order = [self.families[n % len(self.families)] for n in range(count)]
        self.rng.shuffle(order)
        return order

    def _try(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, ReadFault) as error:
            self.sampler.haul.miss(f"{what} failed: {getattr(error, 'strerror', None) or error}")

    def _datagram(self, family: int) -> None:
        stimulus = self.sampler.stimulus
        local, remote = stimulus.addresses.pair(family)
        receiver = stimulus.bind(stimulus.open(family, socket.SOCK_DGRAM), remote)
        sender = stimulus.bind(stimulus.open(family, socket.SOCK_DGRAM), local)
        target = receiver.sock.getsockname()[:2]
        self._lengthen(sender, local)
        if self.rng.random() < 0.5:  # csum_start equals transport_header, where there is a checksum to make
            for option in _NO_CHECKSUM[family]:
                sender.sock.setsockopt(*option, 1)
                receiver.sock.setsockopt(*option, 1)
        sock = self.sampler.pointer(sender) if self.sampler.direct else None
        payload = self.rng.randbytes(self.rng.randrange(100, 900))
        copy = self._sent(sender, lambda: sender.sock.sendto(payload, target))
        self._waiting(copy, sender, receiver.sock, _wire(sender.sock, target), sock)

    def _segment(self, family: int) -> None:
        stimulus = self.sampler.stimulus
        local, remote = stimulus.addresses.pair(family)
        server = stimulus.bind(stimulus.open(family, socket.SOCK_STREAM), remote)
        server.sock.listen()
        client = stimulus.bind(stimulus.open(family, socket.SOCK_STREAM), local)
        self._lengthen(client, local)
        made: list[End] = []
        seen = self.sampler.watch(lambda: made.append(stimulus.connect(client, server)))
        opened = [args[0] for args in seen if args[1:2] == (TCP_CLOSE,)]
        sock = self.sampler.pointer(client) if self.sampler.direct else opened[0] if opened else None
        payload = self.rng.randbytes(self.rng.randrange(50, 250))
        copy = self._sent(client, lambda: client.sock.send(payload))
        self._waiting(copy, client, made[0].sock, _wire(client.sock, server.sock.getsockname()[:2]), sock)

    def _frame(self, sock: socket.socket) -> None:
        number = self.rng.choice(_UNKNOWN_ETHERTYPES)
        frame = bytes(12) + number.to_bytes(2, "big") + self.rng.randbytes(self.rng.randrange(100, 900))
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self.rng.randrange(1 << 24, 1 << 31))
        end = End(sock, 0, "a frame")
        copy = self._sent(end, lambda: sock.sendto(frame, ("lo", number)))
        known = _mark(end) | {find("sk_buff.protocol"): exact(number, 2, "big"),
                              find("sk_buff.len"): exact(len(frame), 4)}
        self._keep(copy, known, end)

    def _of_entry(self, family: int) -> None:
        """A packet of a connection that is tracked already: UDP, or a protocol nobody has been given."""
        assert self.tracker
        stimulus = self.sampler.stimulus
        if self.rng.random() < 0.5:
            end, target = stimulus.raw(family), (stimulus.addresses.local(family), 0)
        else:
            end = stimulus.bind(stimulus.open(family, socket.SOCK_DGRAM), stimulus.addresses.local(family))
            target = (stimulus.addresses.local(family), self.rng.randrange(1024, 65536))
        wire = _wire(end.sock, target)
        ports = struct.unpack(">HH", wire.ports) if end.sock.type != socket.SOCK_RAW else (0, 0)
        protocol = end.sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL)
        entry, address = self.tracker.insert(Tuple(wire.family, protocol, wire.source, wire.destination, *ports))
        copy = self._sent(end, lambda: end.sock.sendto(b"kcompat", target))
        address = address or self.tracker.behind(copy, entry, lowest_pointer(copy.address))
        known = _mark(end) | self._protocol(wire)
        if address is None:
            self.sampler.haul.miss("no packet led to the entry of its connection")
        elif tracked := self.tracker.look(entry, address, tossed=self.tossed):
            self.sampler.haul.tracked.append(tracked)
            known[find("sk_buff._nfct")] = nfct(address)
        self._keep(copy, known, end)

    def _protocol(self, wire: Wire) -> dict[Field, Encodings]:
        return {find("sk_buff.protocol"): (ETHERTYPES[wire.family],)} if self.tossed else {}

    def _keep(self, copy: Copy, known: dict[Field, Encodings], end: End, wire: Wire | None = None,
              waiting: bytes = b"", behind: tuple[tuple[int, bytes], ...] = ()) -> None:
        sent = Sample(copy.data, known, None, end.label)
        self.sampler.haul.packets.append(Packet(sent, copy.address, self.sampler.netns, wire, waiting, behind))

    def _lengthen(self, end: End, local: str) -> None:
        """IP options that mean nothing: with them the headers are as long as we like."""
        if ":" not in local:
            with suppress(OSError):
                end.sock.setsockopt(socket.IPPROTO_IP, _IP_OPTIONS, b"\x01" * 4 * self.rng.randrange(11))

    def _sent(self, end: End, act: Callable[[], object]) -> Copy:
        """The packet that `act` sends. Raises OSError when no hook saw it."""
        memory = self.sampler.memory
        mark = end.sock.getsockopt(socket.SOL_SOCKET, SO_MARK).to_bytes(4, "little", signed=True)
        memory.clear()
        with suppress(ConnectionRefusedError):
            act()
        for copy in memory.copies():
            if copy.hook.object == "sk_buff" and any(mark) and mark in copy.data:
                return copy
        raise OSError(0, "no hook saw the packet")

    def _waiting(self, copy: Copy, end: End, receiver: socket.socket, wire: Wire, sock: int | None) -> None:
        """Keeps the packet, and looks at it while it waits to be received."""
        known = _mark(end) | self._protocol(wire)
        if sock:
            known[find("sk_buff.sk")] = exact(sock, 8)
        if not readable(receiver, _PATIENCE_S):
            raise OSError(0, "it did not arrive")
        waiting = self.sampler.memory.read(copy.address, SIZE)
        behind = _follow(self.sampler.memory, waiting, lowest_pointer(copy.address))
        self._keep(copy, known, end, wire, waiting, behind)


def collect_packets(sampler: Sampler, rng: random.Random, *, private: bool, whole: bool = True) -> None:
    """Packets through this thread's namespace, tracked ones too where it is ours alone; few, if not the `whole`."""
    haul = sampler.haul
    if not sampler.memory.has("sk_buff"):
        return
    native = sampler.stimulus.addresses.native_ipv6
    post = Post(sampler, rng, (socket.AF_INET, socket.AF_INET6) if native else (socket.AF_INET,))
    each, entries = (_EACH, _ENTRIES) if whole else (1, _FEW)
    if not private:
        haul.obstacles |= dict.fromkeys(TRACKED, "connections are tracked for us only in a network namespace of our "
                                        "own, and we may not make one")
        post.send(each, 0)
    else:
        try:
            with Netfilter() as netfilter:
                post.tracker = Tracker(netfilter, sampler.memory, rng, sampler.netns)
                post.send(each, entries)
        except OSError as error:
            haul.obstacles |= dict.fromkeys(TRACKED, unavailable(error))
            post.send(each, 0)
    if whole and not post.tossed:
        with suppress(OSError):
            post.send_frames(2 * each)


def _mark(end: End) -> dict[Field, Encodings]:
    return {find("sk_buff.mark"): exact(end.sock.getsockopt(socket.SOL_SOCKET, SO_MARK) & 0xFFFF_FFFF, 4)}


def _wire(sock: socket.socket, remote: tuple[str, int]) -> Wire:
    """What a packet from `sock` to `remote` looks like; an IPv4 address in an IPv6 socket's clothes is IPv4."""
    local = sock.getsockname()
    packed = [socket.inet_pton(sock.family, address) for address in (local[0], remote[0])]
    mapped = sock.family == socket.AF_INET6 and all(p.startswith(bytes(10) + b"\xff\xff") for p in packed)
    source, destination = (p[12:] for p in packed) if mapped else packed
    ports = struct.pack(">HH", local[1] if sock.type != socket.SOCK_RAW else 0, remote[1])
    return Wire(socket.AF_INET if mapped else sock.family, source, destination, ports)


def _follow(memory: KernelMemory, window: bytes, lowest: int) -> tuple[tuple[int, bytes], ...]:
    """What every pointer of the window to something allocated leads to: a packet's buffer is, what is in it is not."""
    found = []
    for at in pointers([window], len(window), lowest):
        address = int.from_bytes(window[at:at + 8], "little")
        with suppress(ReadFault):
            if is_object(address, lowest):
                found.append((at, memory.read(address, BUFFER)))
    return tuple(found)
