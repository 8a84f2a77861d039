"""Runs datasets: every interval, what they counted becomes records and goes to the sinks."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from collector import nf_conn
from collector.config import Options
from collector.config_keys import taken_over
from collector.dataset import Dataset, Setup
from collector.datasets import bash, dnsflow, httpflow_running, netflow_running
from collector.datasets.hooks import BACKENDS, Backend
from collector.enrich.stage import Stage
from collector.limits import Cost, Meter
from collector.patience import told_alive
from collector.record import tagged
from collector.sampling import SAMPLING
from collector.sinks.outputs import Outputs
from collector.sinks.sink import Sink
from collector.status import Status
from collector.supervised import Off, Supervised
from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.heap import give_back
from kcompat.kernel import Kernel
from kcompat.offsets import Offsets, State
from kcompat.version import running_version_code

log = logging.getLogger(__name__)

# How often the loop looks for other options.
_GLANCE_S = 0.25
# A new dataset is a row here (and a word in what the configuration says of `datasets`).
DATASETS: dict[str, Dataset] = {row.name: row for row in (netflow_running.DATASET, httpflow_running.DATASET,
                                                       dnsflow.DATASET, bash.DATASET)}


@dataclass(slots=True)
class Summary:
    """What one run did: for the last line a user reads. `how` is each dataset's, `lost` and `left_out` are theirs."""

    flushes: int = 0
    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    lost: dict[str, int] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)


# What is compiled from C: which fields it uses, and how it is rendered. The last is what datasets have in common.
_PROGRAMMED: dict[str, tuple[Callable[[], Sequence[Field]], Callable[[Offsets, Options], str]]] = {
    **{name: (row.wanted, row.render) for name, row in DATASETS.items() if row.render},
    nf_conn.NAME: (nf_conn.wanted, lambda offsets, _: nf_conn.render(offsets))}


def wanted(names: Iterable[str] = tuple(DATASETS)) -> Sequence[Field]:
    """The fields these datasets use, or what they have in common; none at all where all of them do without."""
    return tuple(dict.fromkeys(wants for name in names for wants in
                               (DATASETS[name].wanted() if name in DATASETS else _PROGRAMMED[name][0]())))


def render(name: str, offsets: Offsets, options: Options) -> str:
    """Its C as it will be compiled. Raises UnknownField, or KcompatError for a dataset that has none."""
    if name not in _PROGRAMMED:
        raise KcompatError(f"there is no C of a dataset {name!r}: only of {', '.join(programmed())}")
    return _PROGRAMMED[name][1](offsets, options)


def programmed() -> tuple[str, ...]:
    """What is loaded as programs compiled from C: datasets, and what they have in common."""
    return tuple(_PROGRAMMED)


def collect(options: Options, offsets: Offsets, sink: Sink, **settings: Any) -> Summary:
    """Collects as a `Pipeline` does, from its beginning to its end."""
    stop = settings.pop("stop", None)
    duration_s = settings.pop("duration_s", None)
    return Pipeline(options, offsets, sink, **settings).run(stop or threading.Event(), duration_s)


class Pipeline:
    """The datasets of `options` and the loop that flushes them into `sink`.

    A dataset that cannot run is told to `off`, tried again from time to time with what `again` then says of the
    offsets of these datasets, and the others go on, also if there are none: with `keep_trying` from the beginning on.
    `ready` is set once everything is attached and has proved itself; from then on `alive` is called often.
    """

    def __init__(self, options: Options, offsets: Offsets, sink: Sink, *, backends: Sequence[Backend] = BACKENDS,
                 ready: threading.Event | None = None, off: Off | None = None,
                 again: Callable[[tuple[str, ...]], Offsets] | None = None,
                 alive: Callable[[], None] = lambda: None, keep_trying: bool = False) -> None:
        self._setup = Setup(options, offsets, running_version_code(Kernel.running().release), backends)
        self._stage = Stage(options)
        self._sink = sink
        self._ready = ready or threading.Event()
        self._off, self._again, self._alive, self._keeps_trying = off, again, alive, keep_trying
        self._datasets: dict[str, Supervised] = {}
        # Taken out by another configuration; their counters go on should they be put in again.
        self._taken_out: dict[str, Supervised] = {}
        self._summary = Summary()
        self._started_s = time.time()
        self._reloads = 0
        # Only the last one counts. What is put in while it is taken out is not lost, as it would be beside a `= None`.
        self._next: deque[Options] = deque(maxlen=1)
        self._meter = Meter()
        self._status: Status | None = None

    def run(self, stop: threading.Event, duration_s: float | None = None) -> Summary:
        """Until `stop` is set or the duration is over; then flushes once more.

        When no dataset can run at the beginning, what was wrong with the first is raised unless it keeps trying:
        UnknownField, Missing, Unsupported, or Refuted. Raises BrokenPipeError when the only reader has left.
        """
        try:
            self._start()
            self._ready.set()
            begun = due = time.monotonic()
            flushed = False
            end = math.inf if duration_s is None else begun + duration_s
            while not stop.is_set() and time.monotonic() < end:
                # Against drift: the next flush is due an interval after the last was due, not after it was done.
                due = max(due + self.options.interval_s, time.monotonic())
                flushed = self._until(stop, min(due, end))
                if flushed:
                    self._flush()
                    self._keep_limits()
                    give_back()
                else:
                    due = time.monotonic()
            if not flushed:
                self._flush()
        finally:
            for one in self._datasets.values():
                one.close()
            self._stage.close()
        return self._summary

    @property
    def options(self) -> Options:
        return self._setup.options

    @property
    def status(self) -> Status | None:
        """Of the last flush or change; from any thread."""
        return self._status

    def adopt(self, options: Options) -> None:
        """From now on these are the options; from any thread, also from a signal's handler."""
        self._next.append(options)

    def _start(self) -> None:
        names = dict.fromkeys(self.options.datasets)
        for name in names:
            DATASETS[name].prepare(self.options)
        for name in names:
            self._begin(name)
        failed = [one.error for one in self._datasets.values() if one.error]
        if failed and not self._keeps_trying and not any(one.running for one in self._datasets.values()):
            raise failed[0]
        self._took_stock()

    def _begin(self, name: str) -> None:
        if name not in self._taken_out:
            self._taken_out[name] = Supervised(DATASETS[name], self._off)
        one = self._datasets[name] = self._taken_out.pop(name)
        if one.start(self._setup):
            self._summary.how[name] = one.how

    def _until(self, stop: threading.Event, due: float) -> bool:
        """Waits, and meanwhile does what is to be done between two flushes; False when the intervals begin anew."""
        while not stop.is_set() and (rest_s := due - time.monotonic()) > 0:
            retry_at = min((one.retry_at for one in self._datasets.values() if not one.running), default=math.inf)
            if retry_at <= time.monotonic():
                self._retry()
                continue
            self._alive()
            if self._setup.translations.lacks_offsets:
                with told_alive(self._alive):
                    self._ask_again()
                self._setup.translations.adopt(self._setup.means())
            stop.wait(min(rest_s, _GLANCE_S))
            if self._next:
                self._change(self._next.pop())
                return False
        return True

    def _retry(self) -> None:
        with told_alive(self._alive):
            self._ask_again()
            for name, one in self._datasets.items():
                if not one.running and one.retry_at <= time.monotonic() and one.start(self._setup):
                    self._summary.how[name] = one.how
        self._took_stock()

    def _ask_again(self) -> None:
        """Offsets that were not known may be by now, and other datasets need others."""
        if self._again:
            try:
                self._setup.offsets = self._again(self.options.datasets)
            except KcompatError as error:
                log.debug("offsets: %s", error)

    def _change(self, options: Options) -> None:
        """Takes over other options: what was counted until now is flushed with the old ones."""
        self._flush()
        options, kept = taken_over(self.options, options)
        # At once: what must not be told from now on, by a redaction for one, is not.
        self._setup.options = replace(options, outputs=self.options.outputs)
        if kept:
            log.warning("%s: for the next start; what runs keeps the old value", ", ".join(kept))
        if isinstance(self._sink, Outputs):
            try:
                self._sink.reopen(options.outputs)
            except KcompatError as error:
                log.warning("the outputs stay as they were: %s", error)
                options = replace(options, outputs=self.options.outputs)
        self._setup.options = options
        for name in self._datasets.keys() - set(options.datasets):
            one = self._taken_out[name] = self._datasets.pop(name)
            one.close()
        if new := [name for name in dict.fromkeys(options.datasets) if name not in self._datasets]:
            with told_alive(self._alive):
                self._ask_again()
                for name in new:
                    self._begin(name)
        self._reloads += 1
        log.info("the configuration was read again")
        self._took_stock()

    def _keep_limits(self) -> None:
        """Does less rather than cost more. The last dataset stays: who wants none stops the collector."""
        running = {name: one for name, one in self._datasets.items() if one.running}
        sent_bytes = self._sink.given_bytes if isinstance(self._sink, Outputs) else 0
        self._meter.took({name: Cost(one.flush_cpu_s, one.flushed) for name, one in running.items()}, sent_bytes)
        if (excess := self._meter.excess(self.options.limits)) is None:
            for one in running.values():
                one.count_all()
            return
        dearest = running.get(self._meter.most_expensive(excess.by)) if running else None
        if dearest is None or not dearest.sample(excess.text):
            if dearest and len(running) > 1:
                dearest.shed(excess.text)
            else:
                log.warning("%s alone takes %s; it goes on", next(iter(running), "nothing"), excess.text)
        self._meter.forget()
        self._took_stock()

    def _flush(self) -> None:
        summary, tags = self._summary, self.options.tags
        # Names are learnt by the later ones, of answers and of greetings, before netflow asks for them.
        for one in reversed(self._datasets.values()):
            sampling = {SAMPLING: f"1/{one.one_of}"} if one.one_of > 1 else {}
            records = tagged(self._stage.apply(one.flush(time.time_ns())), {**tags, **sampling})
            summary.records += len(records)
            if records:
                self._sink.write(records)
        counted = (*self._datasets.values(), *self._taken_out.values())
        for one in counted:
            summary.lost |= one.lost
        summary.left_out = sum((one.left_out for one in counted), Counter())
        summary.flushes += 1
        self._took_stock()

    def _took_stock(self) -> None:
        sources = Counter(offset.source for offset in self._setup.offsets.values() if offset.state is State.KNOWN)
        self._status = Status(
            pid=os.getpid(), host=self.options.host, kernel=os.uname().release, offsets=dict(sources),
            started_s=self._started_s, taken_s=time.time(), taken_monotonic_s=time.monotonic(),
            interval_s=self.options.interval_s, flushes=self._summary.flushes, reloads=self._reloads,
            datasets=tuple(one.status() for one in self._datasets.values()),
            sinks=self._sink.statuses() if isinstance(self._sink, Outputs) else (),
            kubernetes=self._stage.status(), nat=self._setup.translations.status())
