"""`kcompat collect`: offsets in, records out, with signals turned into a last flush."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from collector import pipeline
from collector.canary import Refuted
from collector.config import Metrics, Options, endpoint
from collector.ctnetlink import is_loaded
from collector.instance import Lock, StatusSocket, run_dir
from collector.sinks.outputs import Outputs
from collector.sinks.sink import CLOSE_DEADLINE_S
from kcompat.bpf import compiling_by
from kcompat.caught import Caught
from kcompat.cli_errors import log_as, say
from kcompat.cli_memory import quarantine
from kcompat.cli_sources import Request, answer
from kcompat.compile_apart import compile_apart
from kcompat.errors import KcompatError, Missing
from kcompat.fields import CONNTRACK
from kcompat.heap import few_arenas
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, Offsets
from kcompat.open_files import allow_many
from kcompat.probe import require_bpf
from kcompat.service_manager import ServiceManager
from kcompat.sysbpf import enable_run_stats

log = logging.getLogger(__name__)

# From a signal to the end: less than the five seconds after which whoever sent it may be impatient.
_END_S, _LEAST_S = 4.0, 0.5


def offsets_of(request: Request, datasets: tuple[str, ...]) -> tuple[Kernel, Offsets]:
    """What these datasets need of this kernel: nobody is asked where they need nothing."""
    wanted = pipeline.wanted(datasets)
    if not wanted:
        return Kernel.running(), Offsets()
    got = answer(request, wanted, () if is_loaded() else [f for f in wanted if f.module == CONNTRACK])
    say(got.origin)
    return got.kernel, got.offsets


def run(request: Request, options: Options, *, duration: float | None, again: Callable[[], Options],
        keep_trying: bool = False) -> int:
    """Collects until the duration, SIGTERM (exit status 0) or Ctrl-C (130). SIGHUP takes what `again` reads."""
    # Everything a user may have got wrong comes before anything that takes time or needs root.
    log_as(options.log.format, options.log.level, options.log.per_minute)
    few_arenas()
    allow_many()
    sinks = Outputs(options.outputs)
    caught, manager = Caught(), ServiceManager()
    try:
        if not keep_trying:
            require_bpf()
        with _alone() as directory, caught, compiling_by(compile_apart):
            kernel, offsets = _offsets_of_any(request, options.datasets, need=not keep_trying)

            def off(name: str, error: KcompatError) -> None:
                if isinstance(error, Refuted):
                    quarantine(request, kernel, error.fields, "the collector's own connections came out wrong")

            def begun() -> None:
                if runs.status and not runs.status.running:
                    sinks.report("; ".join(runs.status.off.values()))
                    say(f"{_doing(runs)}; tried again until it does")
                else:
                    say(f"collecting every {options.interval_s:g} s")
                manager.ready()

            def alive() -> None:
                manager.alive()
                manager.does(_doing(runs))

            runs = pipeline.Pipeline(options, offsets, sinks, off=off, ready=_Announced(begun), alive=alive,
                                     again=lambda datasets: _offsets_of_any(request, datasets)[1],
                                     keep_trying=keep_trying)
            caught.on_hangup(lambda: _reload(runs, again))
            with _telling(directory, runs), _serving(options.metrics, runs):
                summary = runs.run(caught.stop, duration)
                manager.stopping()
    except KcompatError as error:
        sinks.report(str(error))
        raise
    finally:
        sinks.close(_patience_s(caught))
    say(_told(summary, sinks.dropped))
    return 130 if signal.SIGINT in caught.numbers else 0


def _reload(runs: pipeline.Pipeline, again: Callable[[], Options]) -> None:
    """A configuration that is wrong changes nothing."""
    try:
        runs.adopt(again())
    except KcompatError as error:
        log.warning("the configuration stays as it was: %s", error)


@contextmanager
def _alone() -> Iterator[Path | None]:
    """Holds the lock of the one collector; None where there is no place for it, which is said."""
    directory = run_dir()
    try:
        lock = Lock(directory)
    except Missing as error:
        log.warning("a second collector may run, and `kcompat status` cannot ask this one: %s", error)
        yield None
        return
    try:
        yield directory
    finally:
        lock.close()


@contextmanager
def _telling(directory: Path | None, runs: pipeline.Pipeline) -> Iterator[None]:
    """Answers `kcompat status` meanwhile."""
    if directory is None:
        yield
        return
    try:
        told = StatusSocket(directory, lambda: runs.status.as_json() if runs.status else None)
    except Missing as error:
        log.warning("`kcompat status` cannot ask this collector: %s", error)
        yield
        return
    try:
        yield
    finally:
        told.close()


def _offsets_of_any(request: Request, datasets: tuple[str, ...], *, need: bool = True) -> tuple[Kernel, Offsets]:
    """As `offsets_of`; when they cannot be had, the error where all datasets `need` them, else why none is known."""
    try:
        return offsets_of(request, datasets)
    except KcompatError as error:
        if need and all(pipeline.wanted((name,)) for name in datasets):
            raise
        log.warning("%s", error)
        return Kernel.running(), Offsets(Offset.unknown(field, "none", str(error))
                                         for field in pipeline.wanted(datasets))


@contextmanager
def _serving(metrics: Metrics, runs: pipeline.Pipeline) -> Iterator[None]:
    """Serves the metrics meanwhile, if that is wanted; Missing where it cannot be done."""
    with ExitStack() as stack:
        if metrics.bpf_run_time:
            try:
                stack.callback(os.close, enable_run_stats())
            except OSError as error:
                log.warning("the kernel does not count how long programs run: %s", error.strerror)
        if metrics.listen:
            # prometheus_client takes 30 ms and 10 MB.
            from collector.metrics import MetricsServer

            stack.callback(MetricsServer(*endpoint(metrics.listen), lambda: runs.status).close)
        yield


class _Announced(threading.Event):
    """Says so when everything is attached: from then on nothing is missed."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    def set(self) -> None:
        super().set()
        self._then()


def _doing(runs: pipeline.Pipeline) -> str:
    """In a few words: why a dataset is off was said when it was tried, and `kcompat status` says it."""
    status = runs.status
    if status is None:
        return "starting"
    off = f"off: {', '.join(status.off)}" if status.off else ""
    if not status.running:
        return f"no dataset runs; {off}"
    return f"collecting {', '.join(status.running)}{f'; {off}' if off else ''}"


def _patience_s(caught: Caught) -> float:
    """How long sinks may still take: what was caught asks for an end within five seconds, the last flush too."""
    return max(_LEAST_S, _END_S - caught.since_s) if caught.numbers else CLOSE_DEADLINE_S


def _told(summary: pipeline.Summary, dropped: int) -> str:
    """What was collected and, above all, what was lost."""
    lost = {name: count for name, count in summary.lost.items() if count}
    if overflow := summary.left_out.get("overflow"):
        lost["flows past the limit"] = overflow
    if dropped:
        lost["not delivered"] = dropped
    words = (f"{summary.records} record{'s' * (summary.records != 1)} in {summary.flushes} "
             f"interval{'s' * (summary.flushes != 1)} with {', '.join(summary.how.values()) or 'no hooks'}")
    return f"{words}; lost: {', '.join(f'{count} {name}' for name, count in lost.items()) or 'nothing'}"
