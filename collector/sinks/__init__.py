"""Where records go: the table of sinks, and how a user names one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from collector.record import Record, to_jsons, to_lines
from collector.sinks.fanout import Fanout
from collector.sinks.sink import Sink
from collector.sinks.spec import kind_of, network_values, path_values, shown
from kcompat.errors import KcompatError

if TYPE_CHECKING:
    from collector.sinks.lines import LineSink
    from collector.sinks.places import Spooled

__all__ = ["SINKS", "SINK_HELP", "Fanout", "Kind", "Sink", "Spec", "check_sink", "open_sink", "open_sinks",
           "settle_spools", "shared_spools"]

# A sink as a user names it: text, or a table of the configuration.
Spec = str | Mapping[str, Any]


class Kind(NamedTuple):
    """A row of the table: how it is written, and what makes its options of that, and the sink of those."""

    help: str
    options: Callable[[Spec], Any]
    open: Callable[[Spec, Any], Sink]


def check_sink(spec: Spec) -> None:
    """KcompatError if there is no such kind, or one of its keys is wrong; nothing is opened."""
    with _named(spec):
        _kind(spec).options(spec)


def open_sink(spec: Spec) -> Sink:
    """The sink a user spelled, open; KcompatError if there is no such kind or it cannot be opened."""
    with _named(spec):
        kind = _kind(spec)
        return kind.open(spec, kind.options(spec))


def open_sinks(specs: Iterable[Spec]) -> Fanout:
    """All of them as one sink; if one cannot be opened, none stays open."""
    specs = list(specs)
    settle_spools(specs)
    opened: list[Sink] = []
    try:
        for spec in specs:
            opened.append(open_sink(spec))
        return Fanout(opened)
    except BaseException:
        for sink in opened:
            sink.close(0)
        raise


def settle_spools(specs: Iterable[Spec]) -> None:
    """Before they are opened, told of all: what earlier collectors left on disk goes to whose it is.

    KcompatError where two would have one.
    """
    if outputs := _spooled(specs):
        from collector.sinks.places import settle, shared
        for _, why in shared(outputs):
            raise KcompatError(why)
        settle(outputs)


def shared_spools(specs: Iterable[Spec]) -> Iterator[tuple[int, str]]:
    """Which cannot be beside those before them, and why; nothing is opened."""
    if outputs := _spooled(specs):
        from collector.sinks.places import shared
        yield from shared(outputs)


def _spooled(specs: Iterable[Spec]) -> list[Spooled]:
    """Those that keep on disk what waits; of one that cannot be right opening says it."""
    outputs = []
    for at, spec in enumerate(specs):
        with suppress(KcompatError), _named(spec):
            if (kind := _kind(spec)).open is _open_network and (options := kind.options(spec)).spool == "disk":
                from collector.sinks.places import Spooled, place
                outputs.append(Spooled(at, kind_of(spec), options, place(kind_of(spec), options)))
    return outputs


@contextmanager
def _named(spec: Spec) -> Iterator[None]:
    """Whatever a library thinks of what it is given is a user's mistake first, and must not end who runs already."""
    try:
        yield
    except KcompatError:
        raise
    except UnicodeError as error:
        # Its text quotes what it stumbled over, which may be a secret.
        raise KcompatError(f"sink {shown(spec)!r}: {error.__class__.__name__}: {error.args[-1]}") from None
    except Exception as error:
        raise KcompatError(f"sink {shown(spec)!r}: {error.__class__.__name__}: {error}") from None


def _kind(spec: Spec) -> Kind:
    if (name := kind_of(spec)) not in SINKS:
        raise KcompatError(f"sink {shown(spec)!r}: expected {SINK_HELP}")
    return SINKS[name]


# pydantic, rich and httpx are imported by the sinks that need them: each takes longer than a warm start of the rest.
def _options(name: str, scheme: str) -> Callable[[Spec], Any]:
    """For a sink that sends: the class of its options, and how its server is spoken to."""
    def made(spec: Spec) -> Any:
        from collector.sinks import options
        from collector.sinks.spec import built
        return built(getattr(options, name), network_values(spec, scheme), spec)
    return made


def _kafka_options(spec: Spec) -> Any:
    """Which properties there are librdkafka alone knows; where it is not installed, opening says so."""
    options = _options("Kafka", "kafka")(spec)
    try:
        from collector.sinks.kafka import check
    except ModuleNotFoundError:
        return options
    check(options)
    return options


def _url_options(spec: Spec) -> Any:
    """A URL stands as it is, its query too: that is the server's."""
    from collector.sinks import options
    from collector.sinks.spec import built
    return built(options.Http, {"url": spec} if isinstance(spec, str) else network_values(spec, ""), spec)


def _line_options(spec: Spec) -> Any:
    values = path_values(spec)
    if values.keys() <= {"path"}:
        return values.get("path", "-")
    from collector.sinks import options
    from collector.sinks.spec import built
    return built(options.Lines, values, spec)


def _no_options(spec: Spec) -> None:
    if (spec if isinstance(spec, str) else " ".join(spec)) not in ("table", "kind"):
        raise KcompatError(f"sink {shown(spec)!r}: a table goes to standard output and takes no path")


def _open_network(spec: Spec, options: Any) -> Sink:
    from collector.sinks.network import opened
    return opened(kind_of(spec), options)


def _open_jsonl(spec: Spec, options: Any) -> Sink:
    return _lines(spec, options, to_jsons)


def _open_lineproto(spec: Spec, options: Any) -> Sink:
    return _lines(spec, options, to_lines)


def _lines(spec: Spec, options: Any, encode: Callable[[Sequence[Record]], list[str]]) -> LineSink:
    from collector.sinks.lines import open_lines
    if isinstance(options, str):
        return open_lines(f"{kind_of(spec)}:{options}" if isinstance(spec, Mapping) else spec, options, encode)
    from collector.sinks.lines import open_rotating
    name = f"{kind_of(spec)}:{options.path}"
    if options.path == "-" or not (options.max_bytes or options.max_age_s):
        return open_lines(name, options.path, encode)
    return open_rotating(name, Path(options.path), encode, options.max_bytes, options.max_age_s, options.keep)


def _open_table(spec: Spec, options: Any) -> Sink:
    from collector.sinks.table import TableSink
    return TableSink("table")


# A new sink is a row here, and one in `network` if it sends.
SINKS: dict[str, Kind] = {
    "table": Kind("table", _no_options, _open_table),
    "jsonl": Kind("jsonl[:PATH]", _line_options, _open_jsonl),
    "lineproto": Kind("lineproto[:PATH]", _line_options, _open_lineproto),
    "http": Kind("http://URL", _url_options, _open_network),
    "https": Kind("https://URL", _url_options, _open_network),
    "datakit": Kind("datakit://HOST:PORT", _options("Http", "http"), _open_network),
    "influxdb": Kind("influxdb://HOST:PORT", _options("Influx", "http"), _open_network),
    "influxdb2": Kind("influxdb2://HOST:PORT?org=ORG", _options("Influx2", "http"), _open_network),
    "victoriametrics": Kind("victoriametrics://HOST:PORT", _options("Influx", "http"), _open_network),
    "nats": Kind("nats://HOST:PORT", _options("Nats", "nats"), _open_network),
    "kafka": Kind("kafka://HOST:PORT", _kafka_options, _open_network),
    "otlp": Kind("otlp://HOST:PORT", _options("Otlp", "http"), _open_network),
}

SINK_HELP = f"{' | '.join(kind.help for kind in SINKS.values())} (PATH - or none: standard output)"
