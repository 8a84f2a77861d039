"""Netflow records as line protocol, straight from packed flows: what flows share is spelled once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat

from collector.addresses import text_and_type
from collector.packed_flows import (
    HEAD,
    KEY,
    LOCAL,
    MEASUREMENT,
    REMOTE,
    SOURCE,
    EndTags,
    PackedFlows,
    dst_tags,
    fields_of,
    head_tags,
    src_tags,
)
from collector.tag_layout import Gap, Pieces, TagLayout

# So many spelled ends are kept: the next flows often share them.
_KEPT = 1 << 16
_NOTHING = (0,) * 8
_ANY = bytes(16)
_SRC, _DST, _ENDS = range(1, 4)


# Tags of a destination are in so many pieces at most: between them come those of both ends, and what begins with e.
_DST_PIECES = 3
_PLACE = "\0"  # no text of a line has one
# What comes before, between and behind the pieces of a destination, and whether the flow is TCP's.
_Frame = tuple[str, str, str, str, bool]


class FlowLines:
    """Spells flows, also for several threads. Raises ValueError if a common tag has the name of one of their own."""

    def __init__(self, flows: PackedFlows, common: Mapping[str, str], ends: Sequence[EndTags | None] | None) -> None:
        self._flows, self._common, self._ends = flows, common, ends
        self._rests = {
            transport: f" {','.join(f'{name}=%di' for name in fields_of(transport, _NOTHING))} {flows.time_ns}"
            for transport in ("tcp", "udp")}
        names = {name: "" for head in flows.heads for name in head_tags("", head)}
        self._layout = TagLayout([
            (*common, *names), tuple(src_tags(_ANY, 1)), tuple(dst_tags(_ANY, 1, (_ANY, 1), "any")),
            tuple({name: "" for one in {*(ends or ())} if one for name in one.tags})])
        self._line_up = self._layout.line_up()
        self._dst_places = (_PLACE,) * len(self._layout.pieces(_DST, {}))
        self._dst_missing = ("",) * (_DST_PIECES - len(self._dst_places))
        if len(self._dst_places) > _DST_PIECES:
            raise ValueError(f"common tags between those of a destination: {common}")
        # What a line is but for its destination: with the tags of its head, its source, and what is said of both ends.
        self._frames: dict[EndTags | None, dict[bytes, _Frame]] = {None: {}}
        self._heads: dict[bytes, str] = {}
        self._srcs: dict[bytes, Pieces] = {}
        self._dsts: dict[str | None, dict[bytes, Pieces]] = {}
        self._kept = 0
        # Addresses may be as many as flows: what else is said of them is spelled once for all that are alike.
        self._src_gaps: dict[tuple[str, int], Gap] = {}
        self._dst_gaps: dict[tuple[bool, str, int, int, str | None], Gap] = {}

    def lines(self, numbers: range) -> list[str]:
        """Sums of more than 64 bits have no spelling here: flows that are `wide` come out wrong."""
        flows, begin, end = self._flows, numbers.start, numbers.stop
        frames, dsts, tcp, udp = self._frames, self._dsts, self._rests["tcp"], self._rests["udp"]
        if self._kept > _KEPT:
            self._kept = 0
            frames.clear()
            dsts.clear()
        lines: list[str] = []
        append = lines.append
        for key, name, ends, (read, written, retransmits, established, closed, rtt, rtt_var, samples) in zip(
                flows.keys[begin:end], flows.names[begin:end], self._ends[begin:end] if self._ends else repeat(None),
                flows.sums_of(numbers), strict=False):
            alike, there = frames.get(ends), dsts.get(name)
            frame = alike.get(key[SOURCE]) if alike is not None else None
            dst = there.get(key[REMOTE]) if there is not None else None
            first, second, third, last, is_tcp = frame if frame is not None else self._frame(key, ends)
            ip, nat, family = dst if dst is not None else self._dst(key, name)
            line = f"{first}{ip}{second}{nat}{third}{family}{last}"
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

    def _frame(self, key: bytes, ends: EndTags | None) -> _Frame:
        head = self._flows.heads[KEY.unpack(key)[5]]
        tags = self._heads.get(key[HEAD])
        if tags is None:
            tags = self._heads[key[HEAD]] = self._layout.template(
                MEASUREMENT, {**self._common, **head_tags(self._flows.host, head)})
        src = self._srcs.get(key[LOCAL]) or self._src(key)
        told = self._layout.pieces(_ENDS, ends.tags if ends else {})
        text = (tags % self._line_up((*src, *self._dst_places, *told))).split(_PLACE)
        first, second, third, last = *text, *[""] * (_DST_PIECES + 1 - len(text))
        made = first, second, third, last, head.transport == "tcp"
        self._frames.setdefault(ends, {})[key[SOURCE]] = made
        self._kept += 1
        return made

    def _src(self, key: bytes) -> Pieces:
        _, _, _, local, port, _ = KEY.unpack(key)
        text, kind = text_and_type(local)
        like = kind, port
        gap = self._src_gaps.get(like)
        if gap is None:
            gap = self._src_gaps[like] = self._layout.gap(_SRC, src_tags(local, port), "src_ip")
        head, before, after, tail = gap
        if len(self._srcs) > _KEPT:
            self._srcs.clear()
        made = self._srcs[key[LOCAL]] = (*head, f"{before}{text}{after}", *tail)
        return made

    def _dst(self, key: bytes, name: str | None) -> Pieces:
        remote, port, target, _, _, _ = KEY.unpack(key)
        text, kind = text_and_type(remote)
        like = ":" in text, kind, port, target, name
        gap = self._dst_gaps.get(like)
        if gap is None:
            if len(self._dst_gaps) > _KEPT:
                self._dst_gaps.clear()
            gap = self._dst_gaps[like] = self._layout.gap(
                _DST, dst_tags(remote, port, self._flows.targets[target], name), "dst_ip")
        head, before, after, tail = gap
        self._kept += 1
        made = self._dsts.setdefault(name, {})[key[REMOTE]] = (*head, f"{before}{text}{after}", *tail,
                                                               *self._dst_missing)
        return made
