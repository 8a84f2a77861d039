"""The sink for eyes: each batch as a table on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from collector.record import Record
from collector.sinks.lines import StdoutStream
from collector.sinks.sink import CLOSE_DEADLINE_S
from kcompat.printable import printable

# In a pipe rich would take the width of whatever terminal it finds on another descriptor.
PIPE_COLUMNS = 80
MAX_ROWS = 100


class Column(NamedTuple):
    """One column: a cell is `show(record)`. Only columns that may fold give way when the table is too wide.

    An optional one is there when there is something in it.
    """

    title: str
    show: Callable[[Record], str]
    justify: Literal["left", "right"] = "left"
    folds: bool = False
    style: str = ""
    optional: bool = False


class TableSink:
    """The busiest flows of each batch first, and one line for those that are not shown."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.written = 0
        self.dropped = 0
        self._stdout = StdoutStream()

    def write(self, records: Sequence[Record]) -> None:
        console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)
        with console.capture() as captured:
            for measurement, group in groupby(records, key=lambda record: record.measurement):
                _show(console, measurement, list(group))
        text = captured.get().encode(sys.stdout.encoding or "utf-8", "replace")
        try:
            self._stdout.write(text)
        except BrokenPipeError:
            self.dropped += len(records)
            raise
        self.written += len(records)

    def flush(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Nothing is ever held."""

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Standard output is not ours to close."""


def _show(console: Console, measurement: str, records: list[Record]) -> None:
    busiest = sorted(records, key=_weight, reverse=True)
    when = datetime.fromtimestamp(records[0].time / 1e9).strftime("%H:%M:%S")
    console.print(Text(f"{when} {measurement}: {len(records)}", style="bold"))
    columns = _COLUMNS.get(measurement) or tuple(_field_column(name) for name in records[0].fields)
    columns = tuple(c for c in columns if not c.optional or any(map(c.show, records)))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.title, justify=column.justify, no_wrap=not column.folds, style=column.style,
                         overflow="fold")
    for record in busiest[:MAX_ROWS]:
        table.add_row(*(Text(printable(column.show(record))) for column in columns))
    console.print(table)
    if hidden := busiest[MAX_ROWS:]:
        of = "bytes" if "bytes_read" in records[0].fields else "counted"
        console.print(Text(f"and {len(hidden)} more, {_scaled(sum(map(_weight, hidden)))} {of} in all", style="dim"))


def _end(side: str) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        tags = record.tags
        name = tags.get(f"{side}_domain") or tags[f"{side}_ip"]
        return f"[{name}]:{tags[f'{side}_port']}" if ":" in name else f"{name}:{tags[f'{side}_port']}"
    return show


def _field_column(name: str) -> Column:
    return Column(name, lambda record: str(record.fields.get(name, "")), folds=True)


def _number(record: Record, name: str) -> float:
    value = record.fields.get(name, 0)
    return 0 if isinstance(value, str) else value


def _weight(record: Record) -> float:
    """What makes a record busy: its bytes, or how often it was."""
    return _number(record, "bytes_read") + _number(record, "bytes_written") + _number(record, "count")


def _scaled(count: float) -> str:
    """Three digits and a binary unit: 999, 1.0K, 12K."""
    for unit in ("", "K", "M", "G", "T"):
        if count < 1000:
            return f"{count:.1f}{unit}" if unit and count < 10 else f"{count:.0f}{unit}"
        count /= 1024
    return f"{count:.0f}P"


def _rtt(record: Record) -> str:
    rtt_us = _number(record, "rtt")
    return _duration(rtt_us) if rtt_us else ""


def _latency(name: str) -> Callable[[Record], str]:
    return lambda record: "" if record.fields["rcode"] == -1 else _duration(_number(record, name) / 1000)


def _duration(us: float) -> str:
    return f"{us:.0f}us" if us < 1000 else f"{us / 1000:.1f}ms"


def _rcode(record: Record) -> str:
    """As dnspython writes it; no answer at all has a number of its own."""
    from dns.rcode import Rcode, to_text

    rcode = int(_number(record, "rcode"))
    return "no reply" if rcode < 0 else to_text(Rcode.make(rcode))


_ENDS = (
    Column("local", _end("src"), folds=True),
    Column("", lambda record: "<-" if record.tags["direction"] == "incoming" else "->", style="dim"),
    Column("remote", _end("dst"), folds=True),
    Column("", lambda record: record.tags["transport"], style="dim"),
)
_COLUMNS = {
    "netflow": (
        *_ENDS,
        Column("process", lambda record: record.tags["process_name"], folds=True, style="cyan"),
        Column("read", lambda record: _scaled(_number(record, "bytes_read")), "right", style="green"),
        Column("written", lambda record: _scaled(_number(record, "bytes_written")), "right", style="green"),
        Column("rtt", _rtt, "right"),
    ),
    "dnsflow": (
        *_ENDS,
        Column("answer", _rcode, style="cyan"),
        Column("name", lambda record: str(record.fields.get("query_name", "")), folds=True, optional=True),
        Column("count", lambda record: _scaled(_number(record, "count")), "right", style="green"),
        Column("latency", _latency("latency"), "right"),
        Column("longest", _latency("latency_max"), "right"),
    ),
}
