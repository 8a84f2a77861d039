"""The collector's own numbers for Prometheus, and whether it is well, over HTTP; all of it from one `Status`."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from collector.status import ClusterStatus, DatasetStatus, NatStatus, Status
from kcompat.errors import Missing

log = logging.getLogger(__name__)

# After so many intervals without a flush it is not well.
_PATIENCE_INTERVALS, _PATIENCE_S = 3, 30.0

# What each number is called, what it is, what tells the samples of one dataset apart, and where they come from.
_OF_DATASETS: tuple[tuple[type[Metric], str, str, tuple[str, ...], Callable[[DatasetStatus], Iterable[Any]]], ...] = (
    (GaugeMetricFamily, "dataset_up", "Whether it runs.", (),
     lambda d: [(d.runs,)]),
    (CounterMetricFamily, "records", "Points made.", (), lambda d: [(d.records,)]),
    (CounterMetricFamily, "dataset_restarts", "How often it was begun anew.", (), lambda d: [(d.restarts,)]),
    (GaugeMetricFamily, "flush_seconds", "How long its last flush took.", (), lambda d: [(d.flush_s,)]),
    (CounterMetricFamily, "lost", "What was not counted.", ("what",), lambda d: d.lost.items()),
    (CounterMetricFamily, "left_out", "What was seen and is in no record.", ("reason",), lambda d: d.left_out.items()),
    (GaugeMetricFamily, "hook", "1 for the state each program's hook is in.", ("program", "hook", "state"),
     lambda d: [(h.program, h.hook, str(h.state), 1) for h in d.hooks]),
    (GaugeMetricFamily, "map_entries", "Entries of a kernel map when it was last read.", ("map",),
     lambda d: [(m.name, m.entries) for m in d.maps]),
    (GaugeMetricFamily, "map_capacity", "Entries a kernel map holds at most.", ("map",),
     lambda d: [(m.name, m.capacity) for m in d.maps]),
    (GaugeMetricFamily, "bpf_map_bytes", "Kernel memory of its maps, where the kernel tells.", (),
     lambda d: [] if d.map_bytes is None else [(d.map_bytes,)]),
    (CounterMetricFamily, "bpf_runs", "How often a program ran, where the kernel counts.", ("program",),
     lambda d: [(p.program, p.runs) for p in d.programs]),
    (CounterMetricFamily, "bpf_run_seconds", "How long a program ran, where the kernel counts.", ("program",),
     lambda d: [(p.program, p.run_ns / 1e9) for p in d.programs]),
)


class StatusCollector(Collector):
    """For a registry of prometheus_client: asks for a status whenever it is scraped."""

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        if status is None:
            return
        for family, name, words, labels, samples in _OF_DATASETS:
            metric = family(f"kcompat_{name}", words, labels=("dataset", *labels))  # type: ignore[call-arg]
            for one in status.datasets:
                for *values, number in samples(one):
                    metric.add_metric((one.dataset, *values), float(number))  # type: ignore[attr-defined]
            yield metric
        for family, name, words, attribute in ((CounterMetricFamily, "sink_written", "Records delivered.", "written"),
                                               (CounterMetricFamily, "sink_dropped", "Records lost.", "dropped"),
                                               (GaugeMetricFamily, "sink_waiting", "Records waiting.", "waiting"),
                                               (GaugeMetricFamily, "sink_lag_seconds", "Age of the oldest that waits.",
                                                "lag_s")):
            metric = family(f"kcompat_{name}", words, labels=("sink",))
            for sink in status.sinks:
                metric.add_metric((sink.name,), getattr(sink, attribute))
            yield metric
        yield from _of_kubernetes(status.kubernetes)
        yield from _of_nat(status.nat)
        offsets = GaugeMetricFamily("kcompat_offsets", "Known offsets by where they come from.", labels=("source",))
        for source, count in status.offsets.items():
            offsets.add_metric((source,), count)
        yield offsets
        yield CounterMetricFamily("kcompat_flushes", "Intervals flushed.", value=status.flushes)
        yield CounterMetricFamily("kcompat_reloads", "Configurations taken over.", value=status.reloads)
        yield GaugeMetricFamily("kcompat_last_flush_timestamp_seconds", "When this was taken.", value=status.taken_s)


def _of_kubernetes(cluster: ClusterStatus | None) -> Iterator[Metric]:
    if cluster is None:
        return
    yield GaugeMetricFamily("kcompat_kubernetes_up", "Whether records are told of pods.", value=float(cluster.told))
    objects = GaugeMetricFamily("kcompat_kubernetes_objects", "Objects known.", labels=("kind",))
    silent = GaugeMetricFamily("kcompat_kubernetes_silent_seconds", "Since the API server's last word.",
                               labels=("kind",))
    failures = CounterMetricFamily("kcompat_kubernetes_failures", "Lists and watches that failed.", labels=("kind",))
    failures.add_metric(("client",), cluster.failures)
    for one in cluster.kinds:
        objects.add_metric((one.kind,), one.objects)
        failures.add_metric((one.kind,), one.failures)
        if one.silent_s is not None:
            silent.add_metric((one.kind,), one.silent_s)
    yield from (objects, silent, failures)


def _of_nat(nat: NatStatus | None) -> Iterator[Metric]:
    if nat is None:
        return
    for name, words, value in (("kcompat_nat_namespaces", "Connection trackers listened to.", nat.namespaces),
                               ("kcompat_nat_namespaces_refused", "Trackers that cannot be asked.", nat.refused),
                               ("kcompat_nat_destinations", "Destinations seen to be translated.", nat.destinations),
                               ("kcompat_nat_connections", "Translated connections kept in mind.", nat.connections)):
        yield GaugeMetricFamily(name, words, value=value)
    source = GaugeMetricFamily("kcompat_nat_source", "1 for who tells of them.", labels=("source",))
    source.add_metric((nat.how,), 1)
    yield source
    hooks = GaugeMetricFamily("kcompat_nat_hook", "1 for the state each of their programs' hook is in.",
                              labels=("program", "hook", "state"))
    for one in nat.hooks:
        hooks.add_metric((one.program, one.hook, str(one.state)), 1)
    yield hooks
    lost = CounterMetricFamily("kcompat_nat_lost", "Events and translations lost.", labels=("what",))
    for what, count in nat.lost.items():
        lost.add_metric((what,), count)
    yield lost


def illness(status: Status | None, now_s: float) -> str | None:
    """What is wrong, in words; None while all is well. A dataset that cannot run is no illness: others do.

    `now_s` is by CLOCK_MONOTONIC, which is not stepped, and stands while the machine is suspended.
    """
    if status and not status.running:
        return f"no dataset runs: {'; '.join(f'{name}: {why}' for name, why in status.off.items())}"
    return standstill(status, now_s)


def standstill(status: Status | None, now_s: float) -> str | None:
    """Only what a restart may cure: it would change nothing for datasets that cannot run here."""
    if status is None:
        return "it has not begun"
    late_s = now_s - status.taken_monotonic_s
    if late_s > _PATIENCE_INTERVALS * status.interval_s + _PATIENCE_S:
        return f"nothing was flushed for {late_s:.0f} s"
    return None


_JUDGES = {"/healthz": illness, "/livez": standstill}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # A port that somebody else listens on is a mistake that must show.
    allow_reuse_address = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape a minute is nothing to write down."""


class MetricsServer:
    """Serves /metrics, /healthz and /livez until closed."""

    def __init__(self, host: str, port: int, status: Callable[[], Status | None]) -> None:
        """Raises Missing where it cannot listen there."""
        registry = CollectorRegistry()
        registry.register(StatusCollector(status))
        ProcessCollector(registry=registry)
        metrics = make_wsgi_app(registry)

        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO")
            if path == "/metrics":
                return cast("Iterable[bytes]", metrics(environ, start))
            if path not in _JUDGES:
                start("404 Not Found", [("Content-Type", "text/plain")])
                return [b"there is /metrics, /healthz and /livez\n"]
            fault = _JUDGES[path](status(), time.monotonic())
            start("503 Service Unavailable" if fault else "200 OK", [("Content-Type", "text/plain")])
            return [f"{fault or 'fine'}\n".encode()]

        try:
            self._server = make_server(host, port, answer, _Server6 if ":" in host else _Server, _Quiet)
        except OSError as error:
            raise Missing(f"metrics on {host}:{port}: {error.strerror or error}") from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
