"""Netflow records as line protocol, straight from packed flows: what flows share is spelled once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any

from collector.addresses import address_text, address_type, reduce_mapped
from collector.packed_flows import (
    HEAD,
    KEY,
    LOCAL,
    MEASUREMENT,
    REMOTE,
    EndTags,
    PackedFlows,
    dst_tags,
    fields_of,
    head_tags,
    src_tags,
)
from collector.tag_layout import Pieces, TagLayout

# So many spelled ends are kept: the next flows often share them.
_KEPT = 1 << 16
_NOTHING = (0,) * 8
_ANY = bytes(16)
_SRC, _DST, _ENDS = range(1, 4)


class FlowLines:
    """Spells flows, also for several threads. Raises ValueError if a common tag has the name of one of their own."""

    def __init__(self, flows: PackedFlows, common: Mapping[str, str], ends: Sequence[EndTags | None] | None) -> None:
        self._flows, self._common, self._ends = flows, common, ends
        names = {name: "" for head in flows.heads for name in head_tags("", head)}
        self._layout = TagLayout([
            (*common, *names), tuple(src_tags(_ANY, 1)), tuple(dst_tags(_ANY, 1, (_ANY, 1), "any")),
            tuple({name: "" for one in {*(ends or ())} if one for name in one.tags})])
        self._heads: dict[bytes, tuple[str, Callable[[tuple[Any, ...]], tuple[Any, ...]], bool]] = {}
        self._srcs: dict[bytes, Pieces] = {}
        self._src_templates: dict[tuple[str, int], Pieces] = {}
        self._dsts: dict[str | None, dict[bytes, Pieces]] = {}
        self._said: dict[EndTags | None, Pieces] = {None: self._layout.pieces(_ENDS, {})}

    def lines(self, numbers: range) -> list[str]:
        """Sums of more than 64 bits have no spelling here: flows that are `wide` come out wrong."""
        flows, begin, end = self._flows, numbers.start, numbers.stop
        heads, srcs, dsts, said = self._heads, self._srcs, self._dsts, self._said
        if len(srcs) > _KEPT:
            srcs.clear()
        if sum(map(len, dsts.values())) > _KEPT:
            dsts.clear()
        lines: list[str] = []
        append = lines.append
        for key, name, told, (read, written, retransmits, established, closed, rtt, rtt_var, samples) in zip(
                flows.keys[begin:end], flows.names[begin:end], self._ends[begin:end] if self._ends else repeat(None),
                flows.sums_of(numbers), strict=False):
            head = heads.get(key[HEAD])
            src = srcs.get(key[LOCAL])
            there = dsts.get(name)
            dst = there.get(key[REMOTE]) if there is not None else None
            ends = said.get(told)
            template, line_up, is_tcp = head if head is not None else self._head(key)
            if src is None:
                src = self._src(key)
            if dst is None:
                dst = self._dst(key, name)
            if ends is None:
                ends = self._told(told)
            if is_tcp:
                if samples > 1:
                    rtt //= samples
                    rtt_var //= samples
                elif not samples:
                    rtt = rtt_var = 0
                append(template % line_up((*src, *dst, *ends, read, written, retransmits, rtt, rtt_var, closed,
                                           established)))
            else:
                append(template % line_up((*src, *dst, *ends, read, written)))
        return lines

    def _head(self, key: bytes) -> tuple[str, Callable[[tuple[Any, ...]], tuple[Any, ...]], bool]:
        head = self._flows.heads[KEY.unpack(key)[5]]
        fields = fields_of(head.transport, _NOTHING)
        rest = f" {','.join(f'{name}=%di' for name in fields)} {self._flows.time_ns}"
        template = self._layout.template(MEASUREMENT, {**self._common, **head_tags(self._flows.host, head)}, rest)
        made = self._heads[key[HEAD]] = template, self._layout.line_up(len(fields)), head.transport == "tcp"
        return made

    def _src(self, key: bytes) -> Pieces:
        """Addresses may be as many as flows: these have a way of their own, of texts that need no escapes."""
        _, _, _, local, port, _ = KEY.unpack(key)
        packed = reduce_mapped(local)
        kind = address_type(packed)
        templates = self._src_templates.get((kind, port))
        if templates is None:
            templates = self._src_templates[kind, port] = self._layout.pieces(
                _SRC, {**src_tags(local, port), "src_ip": "%s"})
        text = address_text(packed)
        made = self._srcs[key[LOCAL]] = tuple([piece % text if "%s" in piece else piece for piece in templates])
        return made

    def _dst(self, key: bytes, name: str | None) -> Pieces:
        remote, port, target, _, _, _ = KEY.unpack(key)
        made = self._dsts.setdefault(name, {})[key[REMOTE]] = self._layout.pieces(
            _DST, dst_tags(remote, port, self._flows.targets[target], name))
        return made

    def _told(self, ends: EndTags | None) -> Pieces:
        assert ends
        made = self._said[ends] = self._layout.pieces(_ENDS, ends.tags)
        return made
