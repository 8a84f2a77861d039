"""A flush of 200,000 flows: aggregated, serialised, compressed; time, memory, and a client library beside it.

``python -m benchmarks.delivery``. Not in the table of all benchmarks: it needs no kernel, and says how it was measured.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from collector.config import Options
from collector.flows import FlowDelta, aggregate
from collector.record import Record, to_lines

_MAPPED = bytes(10) + b"\xff\xff"
_CHUNK = 512
_MIB = 1 << 20


@click.command()
@click.option("--flows", type=click.IntRange(min=1), default=200_000, show_default=True)
def main(flows: int) -> None:
    """Print what each step took, in seconds of processor and of the clock, and the memory after it."""
    options = Options("box", max_flows=1 << 21)
    _said("start", 0, 0)
    deltas = _timed("deltas, as the kernel's map gives them", lambda: list(_deltas(flows)))
    records = _timed("aggregated into records", lambda: aggregate(deltas, options, time.time_ns(),
                                                                  name_of=lambda netns, address: "db.example.org"))
    lines = _timed("line protocol, requests of 512", lambda: _written(records, None))
    packed = _timed("the same, gzipped at level 1", lambda: _written(records, 1))
    click.echo(f"{len(records)} records: {lines / _MIB:.1f} MiB, {packed / _MIB:.1f} MiB gzipped")
    _beside_the_rival(records[:20_000])


def _deltas(count: int) -> Iterator[FlowDelta]:
    """Of as many keys."""
    for number in range(count):
        yield FlowDelta(_MAPPED + bytes((10, 0, number >> 8 & 255, number & 255)), 40_000,
                        _MAPPED + bytes((10, 1, number >> 16 & 255, number >> 8 & 255)), 443, "tcp", 4_026_531_840,
                        1000 + number % 3000, "nginx", "outgoing", number, number, 0, 100, 10, 1, 1, 1)


def _written(records: Sequence[Record], level: int | None) -> int:
    total = 0
    for begin in range(0, len(records), _CHUNK):
        lines = "\n".join(to_lines(records[begin:begin + _CHUNK])).encode()
        total += len(lines if level is None else gzip.compress(lines, level))
    return total


def _beside_the_rival(records: Sequence[Record]) -> None:
    try:
        from influxdb_client.client.write.point import Point
    except ModuleNotFoundError:
        click.echo("influxdb-client is not installed: nothing to compare with")
        return

    def rival() -> int:
        return sum(len(Point.from_dict({"measurement": record.measurement, "tags": record.tags,
                                        "fields": record.fields, "time": record.time}).to_line_protocol())
                   for record in records)

    begin = time.process_time()
    _written(records, None)
    middle = time.process_time()
    rival()
    ours, theirs = middle - begin, time.process_time() - middle
    click.echo(f"line protocol of {len(records)}: {ours:.3f} s; influxdb-client: {theirs:.3f} s, "
               f"{theirs / ours:.1f} times as long")


def _timed(what: str, work: Callable[[], Any]) -> Any:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    _said(what, time.process_time() - processor, time.perf_counter() - wall)
    return result


def _said(what: str, processor_s: float, wall_s: float) -> None:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    click.echo(f"{what:40} {processor_s:6.2f} s of processor {wall_s:6.2f} s {resident / _MIB:6.0f} MiB resident")


if __name__ == "__main__":
    main()
