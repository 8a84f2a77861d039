"""What a running collector says of itself: one value, for people as a table, for machines as JSON and as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kcompat.hook_status import HookState, HookStatus


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """One dataset. `state` is attached or degraded while it runs, else missing or refused, and `reason` says why.

    `lost` and `left_out` are counts by what it is since it began; `retry_in_s` is when it is tried again.
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


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """One sink; `waiting` records are in its queue."""

    name: str
    written: int
    dropped: int
    waiting: int


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
    interval_s: float
    flushes: int
    reloads: int
    datasets: tuple[DatasetStatus, ...]
    sinks: tuple[SinkStatus, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every dataset asked for runs, and all of it."""
        return all(one.state is HookState.ATTACHED for one in self.datasets)

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        for dataset in told["datasets"]:
            dataset["hooks"] = [hook._asdict() for hook in dataset["hooks"]]
        return told
