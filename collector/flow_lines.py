"""Netflow records as line protocol, straight from packed flows: what flows share is spelled once."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

from collector.addresses import V4_MAPPED, text_and_type
from collector.packed_flows import (
    MEASUREMENT,
    EndTags,
    PackedFlows,
    Told,
    dst_tags,
    fields_of,
    head_tags,
    src_tags,
)
from collector.record import escaped

# So much that is spelled is kept of a kind: the next flows often share it.
_KEPT = 1 << 14
_NOTHING = (0,) * 8
# A KEY taken apart otherwise: what tells IPv4 destinations apart but for the second half of the address (port, target,
# first half), that half, and the source.
_ROW = struct.Struct("<20sBBI")
_ALIKE = struct.Struct("<HI14s")
_OCTETS = [str(number) for number in range(256)]
# Behind the address, tags of a destination come in three pieces, and those of a source in two: others may be between,
# those of both ends for one, and what begins with e. The bounds are the first and the last name of each piece.
_KIND, _WHERE, _FAMILY = ("dst_ip_type",), ("dst_nat_ip", "dst_nat_port", "dst_port"), ("family",)
_SRC, _SRC_PORT = ("src_ip", "src_ip_type"), ("src_port",)
_BOUNDS = ("dst_domain", *_KIND, _WHERE[0], _WHERE[-1], *_FAMILY, *_FAMILY, *_SRC, *_SRC_PORT, *_SRC_PORT)

# What comes before, between and behind the pieces of a destination, and whether the flow is TCP's.
_Frame = tuple[str, str, str, str, bool]
# The first half of an IPv4 address, or all of another; whether it is a half; the pieces behind the address.
_Dst = tuple[str, bool, str, str, str]


class FlowLines:
    """Spells flows, also for several threads. Raises ValueError where a common tag would be amid those of an end."""

    def __init__(self, flows: PackedFlows, common: Mapping[str, str], told: Told | None) -> None:
        self._flows, self._common, self._told = flows, common, told
        _split(common)
        self._rests = {
            transport: f" {','.join(f'{name}=%di' for name in fields_of(transport, _NOTHING))} {flows.time_ns}"
            for transport in ("tcp", "udp")}
        # What a line is but for its destination: by the source, or by that and what is said of the flow's ends.
        self._frames: dict[int | tuple[int, EndTags], _Frame] = {}
        self._heads: dict[tuple[int, EndTags | None], list[str]] = {}
        self._dsts: dict[bytes, _Dst] = {}
        self._pieces: dict[tuple[int, int, str, bool], tuple[str, str, str]] = {}
        self._named: dict[str | None, str] = {}

    def lines(self, numbers: range) -> list[str]:
        """Sums of more than 64 bits have no spelling here: flows that are `wide` come out wrong."""
        flows, tcp, udp, octets = self._flows, self._rests["tcp"], self._rests["udp"], _OCTETS
        frames, dsts, named = self._frames, self._dsts, self._named
        for kept in (frames, dsts, named, self._heads, self._pieces):
            if len(kept) > _KEPT:
                kept.clear()
        told = self._told.of_flows if self._told else {}
        lines: list[str] = []
        append = lines.append
        for number, (alike, third, fourth, source), name, (
                read, written, retransmits, established, closed, rtt, rtt_var, samples) in zip(
                numbers, flows.rows(numbers, _ROW), flows.names[numbers.start:numbers.stop], flows.sums_of(numbers),
                strict=True):
            ends = source if number not in told else (source, told[number])
            before, between, behind, last, is_tcp = frames.get(ends) or self._frame(source, number, ends)
            address, is_half, kind, where, family = dsts.get(alike) or self._dst(alike, third, fourth)
            if is_half:
                address = f"{address}.{octets[third]}.{octets[fourth]}"
            domain = named.get(name) or self._name(name)
            line = f"{before}{domain}{address}{kind}{between}{where}{behind}{family}{last}"
            if is_tcp:
                if samples > 1:
                    rtt //= samples
                    rtt_var //= samples
                elif not samples:
                    rtt = rtt_var = 0
                append(line + tcp % (read, written, retransmits, rtt, rtt_var, closed, established))
            else:
                append(line + udp % (read, written))
        return lines

    def _frame(self, source: int, number: int, key: int | tuple[int, EndTags]) -> _Frame:
        local, port, head_number = self._flows.source(source)
        head, ends = self._flows.heads[head_number], self._told.of(number, source) if self._told else None
        parts = self._heads.get((head_number, ends))
        if parts is None:
            parts = self._heads[head_number, ends] = _split({
                **self._common, **head_tags(self._flows.host, head), **(ends.tags if ends else {})})
        before, between, behind, *last = parts
        tags = src_tags(local, port)
        made = self._frames[key] = (
            MEASUREMENT + before, between, behind,
            f"{last[0]}{_spelled(_SRC, tags)}{last[1]}{_spelled(_SRC_PORT, tags)}{last[2]}", head.transport == "tcp")
        return made

    def _dst(self, alike: bytes, third: int, fourth: int) -> _Dst:
        port, target, half = _ALIKE.unpack(alike)
        address = half + bytes((third, fourth))
        text, kind = text_and_type(address)
        is_v4 = address.startswith(V4_MAPPED)
        like = port, target, kind, is_v4
        pieces = self._pieces.get(like)
        if pieces is None:
            tags = dst_tags(address, port, self._flows.targets[target], None)
            pieces = self._pieces[like] = _spelled(_KIND, tags), _spelled(_WHERE, tags), _spelled(_FAMILY, tags)
        if not is_v4:
            return text, False, *pieces
        made = self._dsts[alike] = f"{half[12]}.{half[13]}", True, *pieces
        return made

    def _name(self, name: str | None) -> str:
        """All there is before an address."""
        made = self._named[name] = _spelled(("dst_domain",), {"dst_domain": name or ""}) + ",dst_ip="
        return made


def _split(tags: Mapping[str, str]) -> list[str]:
    """Spelled: what comes before, between and behind the pieces of a destination and of a source."""
    parts: list[list[str]] = [[] for _ in range(len(_BOUNDS) // 2 + 1)]
    for name in sorted(tags):
        at = bisect_left(_BOUNDS, name)
        if at % 2 or at != bisect_right(_BOUNDS, name):
            raise ValueError(f"a tag {name!r} amid those of an end")
        parts[at // 2].append(name)
    return [_spelled(part, tags) for part in parts]


def _spelled(names: Iterable[str], tags: Mapping[str, str]) -> str:
    """Without those that have no name or no value when they are spelled."""
    return "".join([f",{key}={value}" for name in names if (key := escaped(name)) and (value := escaped(tags[name]))])
