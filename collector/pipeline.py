"""Runs datasets: every interval, what they counted becomes records and goes to the sinks."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from collector.canary import Refuted, prove
from collector.config import NetflowOptions
from collector.datasets import netflow
from collector.datasets.netflow_hooks import BACKENDS, Backend
from collector.flows import FlowDelta, aggregate
from collector.sinks.sink import Sink
from kcompat.errors import KcompatError
from kcompat.fields import Field, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offsets, State
from kcompat.version import running_version_code

log = logging.getLogger(__name__)

DATASETS = (netflow.NAME,)
_PROOFS = 2


@dataclass(slots=True)
class Summary:
    """What one run did: for the last line a user reads."""

    flushes: int = 0
    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    lost: dict[str, int] = field(default_factory=dict)
    backend: str = ""


def wanted() -> Sequence[Field]:
    """The fields the datasets use."""
    return netflow.wanted()


def render(dataset: str, offsets: Offsets, options: NetflowOptions) -> str:
    """A dataset's C as it will be compiled. Raises UnknownField, or KcompatError for a dataset there is not."""
    if dataset not in DATASETS:
        raise KcompatError(f"there is no dataset {dataset!r}: {', '.join(DATASETS)}")
    return netflow.render(offsets, options)


def collect(options: NetflowOptions, offsets: Offsets, sink: Sink, *, duration_s: float | None = None,
            stop: threading.Event | None = None, backends: Sequence[Backend] = BACKENDS,
            ready: threading.Event | None = None) -> Summary:
    """Collects until `stop` is set or `duration_s` is over, then flushes once more.

    `ready` is set once everything is attached and has proved itself. Raises UnknownField, Missing or Unsupported
    before anything is attached, Refuted before anything is published, BrokenPipeError when the only reader has left.
    """
    stop = stop or threading.Event()
    summary = Summary()
    with netflow.Netflow(offsets, options, running_version_code(Kernel.running().release), backends) as dataset:
        summary.backend = dataset.backend
        log.info("netflow attached: %s", ", ".join(dataset.hooks))
        waiting = _proved(dataset, offsets)
        if ready:
            ready.set()
        started = time.monotonic()
        end = None if duration_s is None else started + duration_s
        due = started
        while not stop.is_set() and (end is None or time.monotonic() < end):
            # Against drift: the next flush is due an interval after the last was due, not after it was done.
            due = max(due + options.interval_s, time.monotonic())
            stop.wait((due if end is None else min(due, end)) - time.monotonic())
            _flush(dataset, options, sink, summary, waiting)
        if not summary.flushes:
            _flush(dataset, options, sink, summary, waiting)
        summary.lost = dict(dataset.losses)
    return summary


def _proved(dataset: netflow.Netflow, offsets: Offsets) -> list[FlowDelta]:
    """What others did while the dataset proved itself: once more if need be, for a full map or a slow machine."""
    has_ipv6 = all(offsets[find(name)].state is State.KNOWN for name in ("skc_v6_daddr", "skc_v6_rcv_saddr"))
    others: list[FlowDelta] = []
    for _ in range(_PROOFS):
        proof = prove(dataset.flush, has_ipv6)
        others += proof.others
        if not proof.faults:
            return others
    raise Refuted(netflow.NAME, proof.faults)


def _flush(dataset: netflow.Netflow, options: NetflowOptions, sink: Sink, summary: Summary,
           waiting: list[FlowDelta]) -> None:
    deltas = [*waiting, *dataset.flush()]
    waiting.clear()
    records = aggregate(deltas, options, time.time_ns(), summary.left_out)
    summary.flushes += 1
    summary.records += len(records)
    if records:
        sink.write(records)
