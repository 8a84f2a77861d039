"""Packets of ours: copied on their way, looked at again in the queue they wait in, and followed into their bytes."""

from __future__ import annotations

import platform
import random
import select
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from guessers.conntrack import Tracked, Tracker, nfct, search_timeout, search_tuples, ticks_per_second
from guessers.facts import SO_MARK, SO_PROTOCOL, TCP_CLOSE, exact
from guessers.memory import Copy, KernelMemory, ReadFault
from guessers.nfnetlink import Netfilter, Tuple, unavailable
from guessers.pointers import search_netns
from guessers.sampling import Haul, Sampler, SockSample
from guessers.search import Encodings, Found, Sample, lowest_pointer, pointers
from guessers.stimulus import End
from kcompat.fields import Field, find

_SIZE = 256  # struct sk_buff is 232 bytes or less
_BUFFER = 512  # from head to the end of the headers: TCP leaves up to 320 bytes free before them
_DEVICE = 4096  # struct net_device; its name stands first, or since 6.8 a little behind
_LOOPBACK = b"lo".ljust(16, b"\0")  # IFNAMSIZ bytes
_ETHERNET = 14
_ETHERTYPES = {socket.AF_INET: b"\x08\x00", socket.AF_INET6: b"\x86\xdd"}
_IP_OPTIONS = 4
# SO_NO_CHECK; UDP_NO_CHECK6_TX and UDP_NO_CHECK6_RX, as IPv6 takes no datagram without a checksum unless told to.
_NO_CHECKSUM = {socket.AF_INET: ((socket.SOL_SOCKET, 11),),
                socket.AF_INET6: ((socket.IPPROTO_UDP, 101), (socket.IPPROTO_UDP, 102))}
_UNKNOWN_ETHERTYPES = range(0x9A00, 0xFE00)  # nobody listens to them
_PATIENCE_S = 0.5
_ENTRIES = 18  # so many that the families of their tuples, in any order, show a pattern
_EACH = 4  # datagrams, and TCP segments, a family and round
_FEW = 4  # of them in a second namespace, which is there for its own sake


@dataclass(frozen=True, slots=True)
class Wire:
    """What the network sees of a packet: addresses and ports, packed."""

    family: int
    source: bytes
    destination: bytes
    ports: bytes

    def header_in(self, buffer: bytes) -> int | None:
        """Where this packet's IP header begins in `buffer`, behind a loopback's Ethernet header."""
        before = 12 if self.family == socket.AF_INET else 8
        at = buffer.find(self.source + self.destination) - before
        frame = bytes(12) + _ETHERTYPES[self.family]
        if at < _ETHERNET or buffer[at - _ETHERNET:at] != frame:
            return None
        return at if buffer.startswith(self.ports, self.transport(buffer, at)) else None

    def transport(self, buffer: bytes, at: int) -> int:
        """Where the header behind the IP header at `at` begins."""
        return at + ((buffer[at] & 15) * 4 if self.family == socket.AF_INET else 40)

    def length(self, buffer: bytes, at: int) -> int:
        """How long the frame is that has its IP header at `at`, by what that header says."""
        if self.family == socket.AF_INET:
            return _ETHERNET + int.from_bytes(buffer[at + 2:at + 4], "big")
        return _ETHERNET + 40 + int.from_bytes(buffer[at + 4:at + 6], "big")


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as it was sent, and, where it waits for its receiver, as it waits and what its pointers lead to."""

    sent: Sample
    address: int
    netns: int
    wire: Wire | None = None
    waiting: bytes = b""
    behind: tuple[tuple[int, bytes], ...] = ()


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
            self._try("a datagram", lambda f=family: self._datagram(f))
        for family in self._order(each * len(self.families)):
            self._try("a TCP segment", lambda f=family: self._segment(f))
        for family in self._order(entries) if self.tracker else ():
            self._try("a tracked connection", lambda f=family: self._of_entry(f))

    def send_frames(self, count: int) -> None:
        """Frames with protocol numbers and lengths that nothing else has; where there is one family only."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            for _ in range(count):
                self._try("a frame", lambda: self._frame(sock))

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
        address = address or self.tracker.behind(copy, entry, _lowest(copy.address))
        known = _mark(end) | self._protocol(wire)
        if address is None:
            self.sampler.haul.miss("no packet led to the entry of its connection")
        elif tracked := self.tracker.look(entry, address, tossed=self.tossed):
            self.sampler.haul.tracked.append(tracked)
            known[find("sk_buff._nfct")] = nfct(address)
        self._keep(copy, known, end)

    def _protocol(self, wire: Wire) -> dict[Field, Encodings]:
        return {find("sk_buff.protocol"): (_ETHERTYPES[wire.family],)} if self.tossed else {}

    def _keep(self, copy: Copy, known: dict[Field, Encodings], end: End, *waiting: Any) -> None:
        sent = Sample(copy.data, known, None, end.label)
        self.sampler.haul.packets.append(Packet(sent, copy.address, self.sampler.netns, *waiting))

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
        if not select.select([receiver], [], [], _PATIENCE_S)[0]:
            raise OSError(0, "it did not arrive")
        waiting = self.sampler.memory.read(copy.address, _SIZE)
        behind = _follow(self.sampler.memory, waiting, _lowest(copy.address))
        self._keep(copy, known, end, wire, waiting, behind)


def _mark(end: End) -> dict[Field, Encodings]:
    return {find("sk_buff.mark"): exact(end.sock.getsockopt(socket.SOL_SOCKET, SO_MARK) & 0xFFFF_FFFF, 4)}


def _lowest(witness: int) -> int:
    return lowest_pointer(witness, platform.machine())


def _wire(sock: socket.socket, remote: tuple[str, int]) -> Wire:
    """What a packet from `sock` to `remote` looks like; an IPv4 address in an IPv6 socket's clothes is IPv4."""
    local = sock.getsockname()
    packed = [socket.inet_pton(sock.family, address) for address in (local[0], remote[0])]
    mapped = sock.family == socket.AF_INET6 and all(p.startswith(bytes(10) + b"\xff\xff") for p in packed)
    source, destination = (p[12:] for p in packed) if mapped else packed
    ports = struct.pack(">HH", local[1] if sock.type != socket.SOCK_RAW else 0, remote[1])
    return Wire(socket.AF_INET if mapped else sock.family, source, destination, ports)


def _follow(memory: KernelMemory, window: bytes, lowest: int) -> tuple[tuple[int, bytes], ...]:
    """What every pointer of the window leads to."""
    found = []
    for at in pointers([window], len(window), lowest):
        with suppress(ReadFault):
            found.append((at, memory.read(int.from_bytes(window[at:at + 8], "little"), _BUFFER)))
    return tuple(found)


def search_head(packets: Sequence[Packet]) -> Found:
    """``head``: of all pointers of a waiting packet the one from which its own Ethernet and IP headers lie ahead.

    ``data`` has left them behind by then, whatever the protocol, and no other pointer leads into the buffer.
    """
    field = find("sk_buff.head")
    waiting = [p for p in packets if p.wire and p.waiting]
    if not waiting:
        return Found(field, (), {"samples": 0})
    seen = [_leading(p, p.wire) for p in waiting]
    held = seen[3::4]
    found = set.intersection(*(s for i, s in enumerate(seen) if i % 4 != 3))
    kept = found.intersection(*held)
    exchanged = [_leading(p, waiting[n - 1].wire) for n, p in enumerate(waiting)] if len(waiting) > 1 else [set()]
    return Found(field, tuple(sorted(kept)), {
        "samples": len(waiting), "held_out": len(held), "distinct_values": len({p.waiting for p in waiting}),
        "candidates_by_sample": [len(waiting[0].behind), len(found)], "refuted_by_held_out": sorted(found - kept),
        # The addresses alone are random in 40 bits and more, and so many bytes are looked at behind each pointer.
        "expected_false_positives": (len(waiting[0].behind) or 1) * (_BUFFER * 2.0**-40) ** len(waiting),
        "null_survivors": len(set.intersection(*exchanged)), "method": "pointer to our own headers",
    })


def _leading(packet: Packet, wire: Wire | None) -> set[int]:
    return {at for at, buffer in packet.behind if wire and wire.header_in(buffer) is not None}


def samples(packets: Sequence[Packet], head: int | None) -> list[Sample]:
    """All windows of the packets, with all that is known of each; more of them once `head` leads to their bytes."""
    made = []
    for packet in packets:
        buffer = dict(packet.behind).get(head) if head is not None else None
        at = packet.wire.header_in(buffer) if packet.wire and buffer else None
        if packet.wire is None or buffer is None or head is None or at is None:
            made.append(packet.sent)
            continue
        base = int.from_bytes(packet.waiting[head:head + 8], "little")
        transport = packet.wire.transport(buffer, at)
        frame = packet.wire.length(buffer, at)
        sent = {find("sk_buff.len"): exact(frame, 4)}
        if packet.sent.window[head:head + 8] == packet.waiting[head:head + 8]:  # it has not moved, as for IP options
            sent[find("sk_buff.data")] = exact(base + at - _ETHERNET, 8)
        made.append(replace(packet.sent, values={**packet.sent.values, **sent}))
        ends = (transport, transport + 8)  # a datagram waits behind its header or, since 4.7, before it
        if "TCP" in packet.sent.label:
            ends = (transport + (buffer[transport + 12] >> 4) * 4,) * 2
        known: dict[Field, Encodings] = {
            find("sk_buff.data"): tuple((base + end).to_bytes(8, "little") for end in dict.fromkeys(ends)),
            find("sk_buff.len"): tuple((at - _ETHERNET + frame - end).to_bytes(4, "little")
                                       for end in dict.fromkeys(ends)),
            find("transport_header"): exact(transport, 2), find("network_header"): exact(at, 2),
            find("mac_header"): exact(at - _ETHERNET, 2),
            find("sk_buff.mark"): packet.sent.values[find("sk_buff.mark")],
        }
        made.append(Sample(packet.waiting, known, None, f"{packet.sent.label} waiting"))
    return made


def search_device(packets: Sequence[Packet], read: Callable[[int, int], bytes]) -> Found:
    """``dev``: one pointer for all packets of a namespace, another in another, and each leads to a device named lo."""
    field = find("sk_buff.dev")
    by_namespace: dict[int, list[Packet]] = {}
    for packet in packets:
        by_namespace.setdefault(packet.netns, []).append(packet)
    evidence: dict[str, Any] = {"samples": len(packets), "held_out": 0, "distinct_values": len(by_namespace)}
    if not packets:
        return Found(field, (), evidence)
    kept, split = [], 0
    for at in pointers([p.sent.window for p in packets], _SIZE, _lowest(packets[0].address)):
        leads = [{int.from_bytes(p.sent.window[at:at + 8], "little") for p in group}
                 for group in by_namespace.values()]
        if all(len(found) == 1 for found in leads) and len(set().union(*leads)) == len(leads):
            split += 1
            if all(_is_loopback(next(iter(found)), read) for found in leads):
                kept.append(at)
    return Found(field, tuple(kept), evidence | {
        # A name of two letters and fourteen zeros; 24 bits of it are counted on, at every fourth byte.
        "candidates_by_sample": [split, len(kept)], "null_survivors": 0,
        "expected_false_positives": split * (_DEVICE / 4 * 2.0**-24) ** len(by_namespace),
        "method": "pointer shared in a namespace, leading to a device of the name lo",
    })


def _is_loopback(address: int, read: Callable[[int, int], bytes]) -> bool:
    with suppress(ReadFault):
        window = read(address, _DEVICE)
        at = window.find(_LOOPBACK)
        while at >= 0:
            if at % 4 == 0:
                return True
            at = window.find(_LOOPBACK, at + 1)
    return False


def collect_packets(sampler: Sampler, rng: random.Random, *, private: bool, whole: bool = True) -> None:
    """Packets through this thread's namespace, tracked ones too where it is ours alone; few, if not the `whole`."""
    haul = sampler.haul
    if not sampler.memory.has("sk_buff"):
        return
    post = Post(sampler, rng, (socket.AF_INET, socket.AF_INET6) if sampler.stimulus.addresses.ipv6 else
                (socket.AF_INET,))
    each, entries = (_EACH, _ENTRIES) if whole else (1, _FEW)
    if not private:
        haul.obstacles["nf_conn"] = ("connections are tracked for us only in a network namespace of our own, and we "
                                     "may not make one")
        post.send(each, 0)
    else:
        try:
            with Netfilter() as netfilter:
                post.tracker = Tracker(netfilter, sampler.memory, rng, sampler.netns)
                post.send(each, entries)
        except OSError as error:
            haul.obstacles["nf_conn"] = unavailable(error)
            post.send(each, 0)
    if whole and not post.tossed:
        with suppress(OSError):
            post.send_frames(2 * each)


def conclude(haul: Haul, read: Callable[[int, int], bytes] | None) -> None:
    """What all packets so far show together. With `read`, what their pointers lead to is still alive."""
    head = search_head(haul.packets)
    haul.flows["sk_buff"] = samples(haul.packets, head.candidates[0] if len(head.candidates) == 1 else None)
    haul.flows["nf_conn"] = [t.sample for t in haul.tracked]
    found = [head, *search_tuples(haul.tracked), search_timeout(haul.tracked, ticks_per_second())]
    if read:
        found += [search_device(haul.packets, read), search_owner(haul.tracked, read)]
    haul.reached |= {one.field: one for one in found}


def search_owner(tracked: Sequence[Tracked], read: Callable[[int, int], bytes]) -> Found:
    """``ct_net``: found as a sock's namespace is."""
    net, _ = search_netns([SockSample(t.sample, t.address, t.netns, 0) for t in tracked], read)
    return Found(find("ct_net"), net.candidates, net.evidence)
