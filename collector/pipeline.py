"""Runs datasets: every interval, what they counted becomes records and goes to the sinks."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from collector.config import Options
from collector.dataset import Dataset, Running, Setup
from collector.datasets import bash, dnsflow, netflow_running
from collector.datasets.netflow_hooks import BACKENDS, Backend
from collector.sinks.sink import Sink
from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offsets
from kcompat.version import running_version_code

log = logging.getLogger(__name__)

# A new dataset is a row here (and a word in what the configuration says of `datasets`).
DATASETS: dict[str, Dataset] = {row.name: row for row in (netflow_running.DATASET, dnsflow.DATASET,
                                                       bash.DATASET)}


@dataclass(slots=True)
class Summary:
    """What one run did: for the last line a user reads. `how` is each dataset's, `lost` and `left_out` are theirs."""

    flushes: int = 0
    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    lost: dict[str, int] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)


def wanted(datasets: Iterable[str] = tuple(DATASETS)) -> Sequence[Field]:
    """The fields these datasets use; none at all where all of them do without."""
    return tuple(dict.fromkeys(wants for name in datasets for wants in DATASETS[name].wanted()))


def render(dataset: str, offsets: Offsets, options: Options) -> str:
    """A dataset's C as it will be compiled. Raises UnknownField, or KcompatError for a dataset that has none."""
    row = DATASETS.get(dataset)
    if row is None or row.render is None:
        raise KcompatError(f"there is no C of a dataset {dataset!r}: only of {', '.join(programmed())}")
    return row.render(offsets, options)


def programmed() -> tuple[str, ...]:
    """The datasets that load programs compiled from C."""
    return tuple(name for name, row in DATASETS.items() if row.render)


def collect(options: Options, offsets: Offsets, sink: Sink, *,
            duration_s: float | None = None, stop: threading.Event | None = None,
            backends: Sequence[Backend] = BACKENDS, ready: threading.Event | None = None,
            off: Callable[[str, KcompatError], None] | None = None) -> Summary:
    """Collects until `stop` is set or `duration_s` is over, then flushes once more.

    A dataset that cannot run is told to `off` and the others go on; when none is left, what was wrong with the first
    is raised: UnknownField, Missing, Unsupported, or Refuted. `ready` is set once everything is attached and has
    proved itself. Raises BrokenPipeError when the only reader has left.
    """
    stop = stop or threading.Event()
    summary = Summary()
    setup = Setup(options, offsets, running_version_code(Kernel.running().release), backends)
    with ExitStack() as stack:
        running = _started(setup, off, stack)
        summary.how = {name: one.how for name, one in running.items()}
        if ready:
            ready.set()
        started = time.monotonic()
        end = None if duration_s is None else started + duration_s
        due = started
        while not stop.is_set() and (end is None or time.monotonic() < end):
            # Against drift: the next flush is due an interval after the last was due, not after it was done.
            due = max(due + options.interval_s, time.monotonic())
            stop.wait((due if end is None else min(due, end)) - time.monotonic())
            _flush(running.values(), options, sink, summary)
        if not summary.flushes:
            _flush(running.values(), options, sink, summary)
    return summary


def _started(setup: Setup, off: Callable[[str, KcompatError], None] | None,
             stack: ExitStack) -> dict[str, Running]:
    running: dict[str, Running] = {}
    failed: list[KcompatError] = []
    for name in dict.fromkeys(setup.options.datasets):
        try:
            running[name] = DATASETS[name].start(setup)
        except KcompatError as error:
            failed.append(error)
            if off:
                off(name, error)
        else:
            stack.callback(running[name].close)
    if failed and not running:
        raise failed[0]
    for why in failed:
        log.warning("%s", why)
    return running


def _flush(running: Iterable[Running], options: Options, sink: Sink, summary: Summary) -> None:
    left_out: Counter[str] = Counter()
    for one in running:
        records = one.flush(time.time_ns())
        if options.tags:
            records = [record._replace(tags={**options.tags, **record.tags}) for record in records]
        summary.records += len(records)
        summary.lost |= one.losses
        left_out += one.left_out
        if records:
            sink.write(records)
    summary.left_out = left_out
    summary.flushes += 1
