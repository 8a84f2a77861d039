"""From the options of a sink that sends to the sink itself: its transport, its spool, its threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from collector.sinks import options as of
from collector.sinks.chunk import Transport
from collector.sinks.delivery import Backoff, Delivery
from collector.sinks.places import place
from collector.sinks.segments import Segments
from collector.sinks.spool import MEMORY_BYTES, Spool
from kcompat.errors import Missing


def opened(kind: str, options: of.Network) -> Delivery:
    """KcompatError for what cannot be right; a server that is not there yet is no error."""
    transport = _TRANSPORTS[kind](options)
    directory = place(kind, options)
    if options.spool == "memory":
        spool = Spool(None, options.spool_bytes)
    else:
        spool = Spool(partial(Segments, directory, options.spool_bytes), MEMORY_BYTES)
    return Delivery(transport, spool, Backoff(options.backoff_s, options.longest_backoff_s), directory.name)


# Libraries are imported by the sinks that need them: httpx alone takes longer than a warm start of all the rest.
def _line_protocol(maker: str) -> Callable[[of.Network], Transport]:
    def made(options: of.Network) -> Transport:
        from collector.sinks import http
        transport: Transport = getattr(http, maker)(options)
        return transport
    return made


def _nats(options: of.Network) -> Transport:
    try:
        from collector.sinks.nats import JetStream
    except ModuleNotFoundError as error:
        raise _not_installed("nats", error) from None
    assert isinstance(options, of.Nats)
    return JetStream(options)


def _kafka(options: of.Network) -> Transport:
    try:
        from collector.sinks.kafka import Topic
    except ModuleNotFoundError as error:
        raise _not_installed("kafka", error) from None
    assert isinstance(options, of.Kafka)
    return Topic(options)


def _otlp(options: of.Network) -> Transport:
    try:
        from collector.sinks.otlp import OtlpLogs
    except ModuleNotFoundError as error:
        raise _not_installed("otlp", error) from None
    assert isinstance(options, of.Otlp)
    return OtlpLogs(options)


def _not_installed(extra: str, error: ModuleNotFoundError) -> Missing:
    return Missing(f"sink {extra}: {error.name} is not installed: pip install 'kcompat[{extra}]'")


_TRANSPORTS: dict[str, Callable[[of.Network], Transport]] = {
    "http": _line_protocol("plain"),
    "https": _line_protocol("plain"),
    "datakit": _line_protocol("datakit"),
    "influxdb": _line_protocol("influxdb"),
    "influxdb2": _line_protocol("influxdb2"),
    "victoriametrics": _line_protocol("victoriametrics"),
    "nats": _nats,
    "kafka": _kafka,
    "otlp": _otlp,
}
