"""Flows of one interval as rows for eyes: by flow, process or peer, with rates, sorted and filtered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from collector.record import Record
from kcompat.printable import printable

VIEWS = ("flow", "process", "peer")
_UNITS = ("", "K", "M", "G", "T", "P")


@dataclass(slots=True)
class Row:
    """What one line says; rates are bytes a second, `rtt_us` the mean of the flows that have one, 0 for none."""

    process: str
    pid: str
    local: str
    direction: str
    peer: str
    transport: str
    flows: int = 0
    read_rate: float = 0.0
    write_rate: float = 0.0
    rtt_us: float = 0.0
    retransmits: int = 0
    established: int = 0
    closed: int = 0

    @property
    def total_rate(self) -> float:
        return self.read_rate + self.write_rate

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


# How rows may be sorted: what a key sorts by, greatest first.
SORTS: Mapping[str, Callable[[Row], float]] = {
    "total": lambda row: row.total_rate,
    "read": lambda row: row.read_rate,
    "written": lambda row: row.write_rate,
    "rtt": lambda row: row.rtt_us,
    "retransmits": lambda row: row.retransmits,
    "flows": lambda row: row.flows,
}


def rows(records: Iterable[Record], view: str, elapsed_s: float) -> list[Row]:
    """A row for each flow, process or peer of these netflow records, which are of `elapsed_s` seconds."""
    made: dict[tuple[str, ...], Row] = {}
    samples: dict[tuple[str, ...], int] = {}
    for record in records:
        if record.measurement != "netflow":
            continue
        one = _ends(record)
        key = {"flow": (one.pid, one.process, one.local, one.direction, one.peer, one.transport),
               "process": (one.pid, one.process), "peer": (_host(record.tags, "dst"),)}[view]
        row = made.get(key)
        if row is None:
            row = made[key] = one
            if view != "flow":
                row.local = row.direction = row.transport = ""
            if view == "process":
                row.peer = ""
            elif view == "peer":
                row.peer, row.process, row.pid = _host(record.tags, "dst"), "", ""
        fields = record.fields
        row.flows += 1
        row.read_rate += _number(fields, "bytes_read") / elapsed_s
        row.write_rate += _number(fields, "bytes_written") / elapsed_s
        row.retransmits += int(_number(fields, "retransmits"))
        row.established += int(_number(fields, "tcp_established"))
        row.closed += int(_number(fields, "tcp_closed"))
        if rtt_us := _number(fields, "rtt"):
            count = samples[key] = samples.get(key, 0) + 1
            row.rtt_us += (rtt_us - row.rtt_us) / count
    return list(made.values())


def arranged(of: Iterable[Row], sort: str, *, reverse: bool = False, having: str = "") -> list[Row]:
    """Those with these words in their text, the greatest first; equal ones by name, so that they do not dance."""
    words = having.lower()
    kept = [row for row in of if words in f"{row.process} {row.pid} {row.local} {row.peer} {row.transport}".lower()]
    kept.sort(key=lambda row: (row.process, row.peer, row.local, row.pid))
    kept.sort(key=SORTS[sort], reverse=not reverse)
    return kept


def scaled(count: float) -> str:
    """Three digits and a binary unit: 999, 1.0K, 12K."""
    for unit in _UNITS:
        if count < 999.5 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.1f}{unit}" if unit and count < 9.95 else f"{count:.0f}{unit}"


def duration(us: float) -> str:
    if not us:
        return ""
    return f"{us:.0f}us" if us < 1000 else f"{us / 1000:.1f}ms" if us < 1_000_000 else f"{us / 1e6:.1f}s"


def summary(of: Sequence[Row]) -> str:
    return (f"{sum(row.flows for row in of)} flows, read {scaled(sum(row.read_rate for row in of))}B/s, "
            f"written {scaled(sum(row.write_rate for row in of))}B/s")


def _ends(record: Record) -> Row:
    tags = record.tags
    return Row(printable(tags["process_name"]), tags["pid"], f"{_host(tags, 'src')}:{tags['src_port']}",
               "<-" if tags["direction"] == "incoming" else "->", f"{_host(tags, 'dst')}:{tags['dst_port']}",
               tags["transport"])


def _host(tags: Mapping[str, str], side: str) -> str:
    """The pod or the service, else the name it was looked up by, else the address."""
    for tag in ("pod_name", "service_name"):
        name = tags.get(f"{side}_k8s_{tag}", "N/A")
        if name != "N/A":
            return printable(name)
    name = tags.get(f"{side}_domain") or tags[f"{side}_ip"]
    return printable(f"[{name}]" if ":" in name else name)


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name, 0)
    return value if isinstance(value, int | float) else 0
