"""What packets of ours show of struct sk_buff: which pointer leads to their bytes, which to their device."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from guessers.facts import exact
from guessers.pointers import behind, parted, places_of
from guessers.search import MACHINE, Encodings, Found, Sample, exchanged, lowest_pointer, pointers
from guessers.tape import Reader
from kcompat.fields import Field, find

SIZE = 256  # struct sk_buff is 232 bytes or less
BUFFER = 512  # from head to the end of the headers: TCP leaves up to 320 bytes free before them
ETHERTYPES: dict[int, bytes] = {socket.AF_INET: b"\x08\x00", socket.AF_INET6: b"\x86\xdd"}
_ETHERNET = 14
_TCP = 20  # its header, without options; UDP's is shorter, and bytes of ours follow it
_DEVICE = 4096  # struct net_device; its name stands first, or since 6.8 a little behind
_LOOPBACK = b"lo".ljust(16, b"\0")  # IFNAMSIZ bytes


@dataclass(frozen=True, slots=True)
class Wire:
    """What the network sees of a packet: addresses and ports, packed."""

    family: int
    source: bytes
    destination: bytes
    ports: bytes

    def header_in(self, buffer: bytes) -> int | None:
        """Where this packet's IP header begins in `buffer`, behind a loopback's Ethernet header.

        Before it may lie what is left of an earlier packet between the same addresses: memory is used again.
        """
        before = 12 if self.family == socket.AF_INET else 8
        frame = bytes(12) + ETHERTYPES[self.family]
        found = -1
        while (found := buffer.find(self.source + self.destination, found + 1)) >= 0:
            at = found - before
            if at >= _ETHERNET and buffer[at - _ETHERNET:at] == frame \
                    and buffer.startswith(self.ports, self.transport(buffer, at)):
                return at
        return None

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


def headers_of(packet: Packet, buffer: bytes) -> list[range]:
    """Where the packet's headers stand in what one of its pointers leads to; nowhere, as a rule."""
    if not packet.wire or (at := packet.wire.header_in(buffer)) is None:
        return []
    return [range(at - _ETHERNET, min(packet.wire.transport(buffer, at) + _TCP, len(buffer)))]


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
    wires = exchanged([p.wire for p in waiting])
    others = [_leading(p, wire) for p, wire in zip(waiting, wires, strict=True)] if len(waiting) > 1 else []
    return Found(field, tuple(sorted(kept)), {
        "samples": len(waiting), "held_out": len(held), "distinct_values": len({p.waiting for p in waiting}),
        "candidates_by_sample": [len(waiting[0].behind), len(found)], "refuted_by_held_out": sorted(found - kept),
        # The addresses alone are random in 40 bits and more, and so many bytes are looked at behind each pointer.
        "expected_false_positives": (len(waiting[0].behind) or 1) * (BUFFER * 2.0**-40) ** len(waiting),
        "null_survivors": len(set.intersection(*others)) if others else -1, "method": "pointer to our own headers",
        "chance": "40 random bits of addresses in each packet, at any byte behind each pointer",
    })


def leads_to_bytes(packets: Sequence[Packet], at: int) -> bool | None:
    """Whether the pointer at `at` leads to each waiting packet's own headers; None when no packet waited."""
    waiting = [p for p in packets if p.wire and p.waiting]
    return all(at in _leading(p, p.wire) for p in waiting) if waiting else None


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


def search_device(packets: Sequence[Packet], read: Reader, machine: str = MACHINE) -> Found:
    """``dev``: one pointer for all packets of a namespace, another in another, and each leads to a device named lo."""
    field = find("sk_buff.dev")
    namespaces = [p.netns for p in packets]
    evidence: dict[str, Any] = {"samples": len(packets), "held_out": 0, "distinct_values": len(set(namespaces))}
    if not packets:
        return Found(field, (), evidence)
    windows, lowest = [p.sent.window for p in packets], lowest_pointer(packets[0].address, machine)
    kept, split, null = [], 0, 0
    for at in pointers(windows, SIZE, lowest):
        if leads := parted(windows, namespaces, at):
            split += 1
            if all(_is_loopback(address, read, lowest) for address in leads.values()):
                kept.append(at)
        if len(set(namespaces)) > 1 and (leads := parted(windows, exchanged(namespaces), at)):
            null += all(_is_loopback(address, read, lowest) for address in leads.values())
    return Found(field, tuple(kept), evidence | {
        # A name of two letters and fourteen zeros; 24 bits of it are counted on, at every fourth byte.
        "candidates_by_sample": [split, len(kept)], "null_survivors": null if len(set(namespaces)) > 1 else -1,
        "expected_false_positives": split * (_DEVICE / 4 * 2.0**-24) ** len(set(namespaces)),
        "method": "pointer shared in a namespace, leading to a device of the name lo",
        "chance": f"24 bits of a name for each namespace, behind {split} pointers",
    })


def _is_loopback(address: int, read: Reader, lowest: int) -> bool:
    return bool(places_of(behind(address, _DEVICE, read, lowest), _LOOPBACK, 4))
