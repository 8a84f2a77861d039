"""What a running collector says of itself: one value, for people as a table, for machines as JSON and as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple

from kcompat.hook_status import HookState, HookStatus


class MapStatus(NamedTuple):
    """How full a kernel map was when it was last read whole."""

    name: str
    entries: int
    capacity: int


class ProgramStatus(NamedTuple):
    """What a program cost; zeros where the kernel does not count (5.1 on, when it is told to)."""

    program: str
    runs: int
    run_ns: int


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """One dataset. `state` is attached or degraded while it runs, else missing or refused, and `reason` says why.

    `lost` and `left_out` are counts by what it is since it began; `retry_in_s` is when it is tried again.
    `map_bytes` is kernel memory of its maps: 0 for one that has none, None if it is off, or the kernel does not tell.
    """

    dataset: str
    state: HookState
    reason: str = ""
    how: str = ""
    records: int = 0
    flush_s: float = 0.0
    restarts: int = 0
    retry_in_s: float | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    hooks: tuple[HookStatus, ...] = ()
    maps: tuple[MapStatus, ...] = ()
    map_bytes: int | None = None
    programs: tuple[ProgramStatus, ...] = ()

    @property
    def runs(self) -> bool:
        """All of it, or a part."""
        return self.state in (HookState.ATTACHED, HookState.DEGRADED)


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """One sink; `waiting` records are in its queue or spool, the oldest for `lag_s`."""

    name: str
    written: int
    dropped: int
    waiting: int
    lag_s: float = 0.0


class KindStatus(NamedTuple):
    """Objects of one kind in the cluster; `silent_s` since the API server's last word of them, None before the first.

    `listed` once all of them were; `failures` are lists and watches that went wrong, since the beginning.
    """

    kind: str
    objects: int
    listed: bool
    silent_s: float | None
    failures: int


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """How well the Kubernetes cluster is known. Not `told`: records say nothing of it, for too little is known.

    `failures` are those to become its API server's client, `error` is the last of any kind.
    """

    server: str
    told: bool
    failures: int
    error: str
    kinds: tuple[KindStatus, ...]

    def objects(self, kind: str) -> int:
        return next((one.objects for one in self.kinds if one.kind == kind), 0)


@dataclass(frozen=True, slots=True)
class NatStatus:
    """What is known of translated destinations. `tracking` is False where the kernel has no connection tracker.

    Namespaces that are `refused` cannot be asked; `lost` are counts by what it is. `how` is who tells of them, and
    `why` what keeps programs from it, empty when they do: `hooks` are theirs.
    """

    tracking: bool
    namespaces: int
    refused: int
    destinations: int
    connections: int
    lost: Mapping[str, int]
    how: str
    why: str = ""
    hooks: tuple[HookStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """The whole collector, as it was at the end of the last interval, or when something last changed."""

    pid: int
    host: str
    kernel: str
    offsets: Mapping[str, int]
    """How many offsets came from which source."""
    started_s: float
    taken_s: float
    taken_monotonic_s: float
    """The same by CLOCK_MONOTONIC: what is late by it is, whatever became of the clock on the wall."""
    interval_s: float
    flushes: int
    reloads: int
    datasets: tuple[DatasetStatus, ...]
    sinks: tuple[SinkStatus, ...]
    kubernetes: ClusterStatus | None = None
    """None where nobody wants it."""
    nat: NatStatus | None = None
    """None where no dataset that runs asks for it."""

    @property
    def is_whole(self) -> bool:
        """Whether every dataset asked for runs, and all of it."""
        return all(one.state is HookState.ATTACHED for one in self.datasets)

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(one.dataset for one in self.datasets if one.runs)

    @property
    def off(self) -> Mapping[str, str]:
        """The datasets that do not run, and why."""
        return {one.dataset: one.reason for one in self.datasets if not one.runs}

    @classmethod
    def completed(cls, told: Mapping[str, Any]) -> dict[str, Any]:
        """`as_json` of another kcompat's collector: what it does not know is as by default, where that is said here."""
        rows = {name: [_defaults(row) | one for one in told[name]]
                for name, row in (("datasets", DatasetStatus), ("sinks", SinkStatus))}
        nat = told.get("nat")
        return _defaults(cls) | dict(told) | rows | {"nat": _defaults(NatStatus) | nat if nat else None}

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        for dataset in told["datasets"]:
            for rows in ("hooks", "maps", "programs"):
                dataset[rows] = [row._asdict() for row in dataset[rows]]
        if self.nat:
            told["nat"]["hooks"] = [row._asdict() for row in self.nat.hooks]
        if self.kubernetes:
            told["kubernetes"]["kinds"] = [row._asdict() for row in self.kubernetes.kinds]
        return told


def _defaults(row: type) -> dict[str, Any]:
    return {one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(row)
            if one.default is not MISSING or one.default_factory is not MISSING}
