"""Netflow records of one interval that are made when asked for: until then a flow takes 250 bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import overload

from collector.flow_lines import FlowLines
from collector.packed_flows import (
    MEASUREMENT,
    PackedFlows,
    Sums,
    Told,
    dst_tags,
    fields_of,
    head_tags,
    src_tags,
)
from collector.record import Record, Records, to_line_protocol

# In the order of JSON Lines; other tags follow.
_ORDER = ("host", "source", "direction", "src_ip", "src_port", "src_ip_type", "dst_ip", "dst_port", "dst_ip_type",
          "dst_nat_ip", "dst_nat_port", "pid", "process_name", "transport", "family")


class FlowRecords(Records):
    """The records of some flows, in their order; slices share what they are made of.

    `common` are tags of all records, none of which replaces one of their own; `told` is what is known of their ends.
    """

    def __init__(self, flows: PackedFlows, common: Mapping[str, str] | None = None,
                 told: Told | None = None) -> None:
        self.flows = flows
        self.numbers = range(len(flows.names))
        self._common, self._told = common or {}, told
        self._spelled: list[FlowLines | None] = []

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> FlowRecords: ...

    def __getitem__(self, at: int | slice) -> Record | FlowRecords:
        if isinstance(at, slice):
            if at.step not in (None, 1):
                raise ValueError(f"records by steps of {at.step}")
            made = copy(self)
            made.numbers = self.numbers[at]
            return made
        number = self.numbers[at]
        return next(iter(self[number - self.numbers.start:number - self.numbers.start + 1]))

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self.numbers, self.flows.rows(self.numbers), self.flows.sums_of(self.numbers))

    def tagged(self, tags: Mapping[str, str]) -> FlowRecords:
        return FlowRecords(self.flows, {**tags, **self._common}, self._told)[self.numbers.start:self.numbers.stop]

    def told(self, told: Told) -> FlowRecords:
        """The same with what is known of the ends of every flow there is, also of those not in this slice."""
        return FlowRecords(self.flows, self._common, told)[self.numbers.start:self.numbers.stop]

    def lines(self) -> list[str]:
        if not self.numbers:
            return []
        if not self._spelled:
            # What is spelled for one slice serves the next.
            try:
                self._spelled.append(FlowLines(self.flows, self._common, self._told))
            except ValueError:
                self._spelled.append(None)
        if (spelled := self._spelled[0]) is None:
            return [*map(to_line_protocol, self)]
        lines = spelled.lines(self.numbers)
        for number in self.flows.wide.keys() & {*self.numbers} if self.flows.wide else ():
            lines[number - self.numbers.start] = to_line_protocol(self[number - self.numbers.start])
        return lines

    def _record(self, number: int, row: tuple[int, int, bytes, int], sums: Sums) -> Record:
        flows, (remote_port, target, remote, source) = self.flows, row
        local, local_port, number_of_head = flows.source(source)
        head = flows.heads[number_of_head]
        own = {**head_tags(flows.host, head), **src_tags(local, local_port),
               **dst_tags(remote, remote_port, flows.targets[target], flows.names[number])}
        tags = {**self._common, **{name: own[name] for name in _ORDER}}
        if "dst_domain" in own:
            tags["dst_domain"] = own["dst_domain"]
        tags |= head.more
        if self._told and (ends := self._told.of(number, source)):
            tags |= ends.tags
        return Record(MEASUREMENT, tags, fields_of(head.transport, sums), flows.time_ns)
