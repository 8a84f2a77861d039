"""Where records go: the table of sinks, and how a user names one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from collector.record import to_json, to_line_protocol
from collector.sinks.fanout import Fanout
from collector.sinks.lines import open_lines
from collector.sinks.sink import Sink
from kcompat.errors import KcompatError

__all__ = ["SINKS", "SINK_HELP", "Fanout", "Sink", "open_sink", "open_sinks"]

SINK_HELP = "table | jsonl[:PATH] | lineproto[:PATH] | http://URL | https://URL (PATH - or none: standard output)"


def open_sink(spec: str) -> Sink:
    """The sink a user spelled, open; KcompatError if there is no such kind or it cannot be opened."""
    kind = spec.partition(":")[0]
    if kind not in SINKS:
        raise KcompatError(f"sink {spec!r}: expected {SINK_HELP}")
    return SINKS[kind](spec)


def open_sinks(specs: Iterable[str]) -> Fanout:
    """All of them as one sink; if one cannot be opened, none stays open."""
    opened: list[Sink] = []
    try:
        for spec in specs:
            opened.append(open_sink(spec))
    except KcompatError:
        for sink in opened:
            sink.close(0)
        raise
    return Fanout(opened)


def _path(spec: str) -> str:
    _, colon, path = spec.partition(":")
    if colon and not path:
        raise KcompatError(f"sink {spec!r}: no path after the colon")
    return path or "-"


def _open_jsonl(spec: str) -> Sink:
    return open_lines(spec, _path(spec), to_json)


def _open_lineproto(spec: str) -> Sink:
    return open_lines(spec, _path(spec), to_line_protocol)


# rich and httpx are imported by the sinks that need them: together they take longer than a warm start of all the rest.
def _open_table(spec: str) -> Sink:
    from collector.sinks.table import TableSink
    if spec != "table":
        raise KcompatError(f"sink {spec!r}: a table goes to standard output and takes no path")
    return TableSink(spec)


def _open_http(spec: str) -> Sink:
    from collector.sinks.http import open_http
    return open_http(spec)


SINKS: dict[str, Callable[[str], Sink]] = {
    "table": _open_table,
    "jsonl": _open_jsonl,
    "lineproto": _open_lineproto,
    "http": _open_http,
    "https": _open_http,
}
