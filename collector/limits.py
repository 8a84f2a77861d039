"""What the collector costs, dataset by dataset, and which of them is to do less when that is too much."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from collector.config import Limits

# One interval over a limit may be a burst; three in a row are a load.
_INTERVALS = 3
_PAGE = os.sysconf("SC_PAGE_SIZE")


Kind = Literal["time", "records"]


class Cost(NamedTuple):
    """What one flush of a dataset took: seconds of processor, and how many records it made."""

    cpu_s: float
    records: int = 0


class Excess(NamedTuple):
    """Which limit is passed, in words, and by what to choose the dataset that is to do less."""

    text: str
    by: Kind


class Meter:
    """Fed once an interval with what each dataset's flush took; it adds the time of the datasets' own threads."""

    def __init__(self) -> None:
        self._seen_bytes = 0
        self._rates: deque[float] = deque(maxlen=_INTERVALS)
        self._seen_s = self._cpu_s()
        self._at_s = time.monotonic()
        self._threads: dict[str, float] = {}
        self._shares: deque[float] = deque(maxlen=_INTERVALS)
        self._memory_mb: deque[float] = deque(maxlen=_INTERVALS)
        self._costs: deque[dict[str, Cost]] = deque(maxlen=_INTERVALS)

    def took(self, flushes: Mapping[str, Cost], sent_bytes: int = 0) -> None:
        """The flush of each dataset that runs, and all bytes that were given to the outputs until now."""
        cpu_s, at_s = self._cpu_s(), time.monotonic()
        passed_s = max(at_s - self._at_s, 1e-3)
        self._shares.append(100 * (cpu_s - self._seen_s) / passed_s)
        self._rates.append((sent_bytes - self._seen_bytes) / 1000 / passed_s)
        self._seen_s, self._at_s, self._seen_bytes = cpu_s, at_s, sent_bytes
        self._memory_mb.append(resident_mb())
        threads = thread_times_s(flushes)
        costs = {name: cost._replace(cpu_s=cost.cpu_s + max(0.0, threads.get(name, 0.0) - self._threads.get(name, 0.0)))
                 for name, cost in flushes.items()}
        self._threads = threads
        self._costs.append(costs)

    def excess(self, limits: Limits) -> Excess | None:
        """Only after enough intervals, and of the last ones."""
        if len(self._shares) < _INTERVALS:
            return None
        share, memory_mb, rate = sum(self._shares) / _INTERVALS, min(self._memory_mb), sum(self._rates) / _INTERVALS
        if limits.cpu_percent is not None and share > limits.cpu_percent:
            return Excess(f"{share:.1f} % of a processor, over the limit of {limits.cpu_percent:g} %", "time")
        if limits.memory_mb is not None and memory_mb > limits.memory_mb:
            return Excess(f"{memory_mb:.0f} MB of memory, over the limit of {limits.memory_mb} MB", "time")
        if limits.output_kb_s is not None and rate > limits.output_kb_s:
            return Excess(f"{rate:.0f} kB/s to the outputs, over the limit of {limits.output_kb_s:g} kB/s", "records")
        return None

    def most_expensive(self, by: Kind = "time") -> str:
        """Of the datasets fed last, the one that took most time lately, or made most records."""
        return max(self._costs[-1], key=lambda name: sum(
            (costs[name].cpu_s if by == "time" else costs[name].records) for costs in self._costs if name in costs))

    def forget(self) -> None:
        """After something was closed: what was before says nothing of what is now."""
        self._shares.clear()
        self._memory_mb.clear()
        self._rates.clear()
        self._costs.clear()

    def _cpu_s(self) -> float:
        return time.process_time()


def thread_times_s(names: Collection[str]) -> dict[str, float]:
    """Processor seconds of the threads that datasets have of their own: those whose names begin with theirs."""
    times: dict[str, float] = {}
    for thread in threading.enumerate():
        name = thread.name.partition(" ")[0]
        if name in names and thread.ident is not None:
            try:
                took_s = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            except OSError:
                continue  # it has just ended
            times[name] = times.get(name, 0.0) + took_s
    return times


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / (1 << 20)
