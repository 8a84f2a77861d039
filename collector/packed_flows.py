"""Flows of one interval, packed into bytes: what their keys and sums hold, and the tags and fields these spell."""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from collector.addresses import describe

MEASUREMENT = "netflow"
NOT_KNOWN = "N/A"

# The key of a flow: its remote port (0 where starred), the number of its `Target`, its remote address, and the number
# of its `Source`. Bytes, for the garbage collector walks over 200,000 tuples again and again.
KEY = struct.Struct("<HI16sI")
# The near end of flows: address, port (0 where starred), and the number of the `Head`.
SOURCE = struct.Struct("<16sHI")
Source = tuple[bytes, int, int]
# Sums of one flow: read, written, retransmits, established, closed, rtt, rtt_var, sockets with an rtt sample.
SUMS = struct.Struct("<8q")
Sums = tuple[int, int, int, int, int, int, int, int]

# Where an outgoing connection really went, address (16 bytes) and port, where that is not its remote end.
Target = tuple[bytes, int]


class Head(NamedTuple):
    """What many flows have in common. Two namespaces never make one flow, though a netns is in no tag."""

    netns: int
    transport: str
    direction: str
    pid: int
    process_name: str
    more: Mapping[str, str]
    """Tags of the process."""


class EndTags:
    """What is known of the two ends of a flow beside the flow itself. Told apart by identity: flows share them."""

    __slots__ = ("tags",)

    def __init__(self, tags: Mapping[str, str]) -> None:
        self.tags = tags


class Told(NamedTuple):
    """What is known of ends: by the number of a flow where that of its far end is known, else by that of its source."""

    of_flows: Mapping[int, EndTags]
    of_sources: Sequence[EndTags | None]

    def of(self, number: int, source: int) -> EndTags | None:
        return self.of_flows.get(number) or self.of_sources[source]


@dataclass(slots=True)
class PackedFlows:
    """Flow number n has the nth KEY, names[n] of its remote end, and the nth SUMS: wide[n] if they do not fit."""

    host: str
    time_ns: int
    keys: bytearray = field(default_factory=bytearray)
    names: list[str | None] = field(default_factory=list)
    sums: bytearray = field(default_factory=bytearray)
    wide: dict[int, Sums] = field(default_factory=dict)
    heads: list[Head] = field(default_factory=list)
    sources: bytearray = field(default_factory=bytearray)
    targets: list[Target | None] = field(default_factory=lambda: [None])

    def add(self, number: int, counts: Sums) -> None:
        place = number * SUMS.size
        before = self.wide.get(number) or SUMS.unpack_from(self.sums, place)
        sums: Sums = tuple(map(operator.add, before, counts))
        try:
            self.sums[place:place + SUMS.size] = SUMS.pack(*sums)
            self.wide.pop(number, None)
        except struct.error:
            self.wide[number] = sums

    def rows(self, numbers: range, row: struct.Struct = KEY) -> Iterator[tuple[Any, ...]]:
        """Keys, taken apart as the `row` says, which is as long as a KEY."""
        return row.iter_unpack(memoryview(self.keys)[numbers.start * KEY.size:numbers.stop * KEY.size])

    def source(self, number: int) -> Source:
        found: Source = SOURCE.unpack_from(self.sources, number * SOURCE.size)
        return found

    def sums_of(self, numbers: range) -> Iterator[Sums]:
        found: Iterator[Sums] = SUMS.iter_unpack(
            memoryview(self.sums)[numbers.start * SUMS.size:numbers.stop * SUMS.size])
        if not self.wide:
            return found
        return (self.wide.get(number, sums) for number, sums in zip(numbers, found, strict=True))


def src_tags(local: bytes, port: int) -> dict[str, str]:
    src = describe(local)
    return {"src_ip": src.text, "src_port": port_text(port), "src_ip_type": src.type}


def dst_tags(remote: bytes, port: int, target: Target | None, name: str | None) -> dict[str, str]:
    dst = describe(remote)
    return {
        "dst_ip": dst.text,
        "dst_port": port_text(port),
        "dst_ip_type": dst.type,
        "dst_nat_ip": describe(target[0]).text if target else NOT_KNOWN,
        "dst_nat_port": str(target[1]) if target else NOT_KNOWN,
        "family": dst.family,
        **({"dst_domain": name} if name else {}),
    }


def head_tags(host: str, head: Head) -> dict[str, str]:
    return {"host": host, "source": MEASUREMENT, "direction": head.direction, "pid": str(head.pid),
            "process_name": head.process_name or NOT_KNOWN, "transport": head.transport, **head.more}


def port_text(port: int) -> str:
    return str(port) if port else "*"


def fields_of(transport: str, sums: Sums) -> dict[str, int]:
    read, written, retransmits, established, closed, rtt, rtt_var, samples = sums
    if transport != "tcp":
        return {"bytes_read": read, "bytes_written": written}
    return {
        "bytes_read": read,
        "bytes_written": written,
        "retransmits": retransmits,
        # 0 where no socket of the flow had a sample, as no measured rtt is.
        "rtt": rtt // samples if samples else 0,
        "rtt_var": rtt_var // samples if samples else 0,
        "tcp_closed": closed,
        "tcp_established": established,
    }
