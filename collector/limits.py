"""What the collector costs, dataset by dataset, and which of them to close when that is too much."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from collector.config import Limits

# One interval over a limit may be a burst; three in a row are a load.
_INTERVALS = 3
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Meter:
    """Fed once an interval with what each dataset's flush took; it adds the time of the datasets' own threads."""

    def __init__(self) -> None:
        self._seen_s = self._cpu_s()
        self._at_s = time.monotonic()
        self._threads: dict[str, float] = {}
        self._shares: deque[float] = deque(maxlen=_INTERVALS)
        self._memory_mb: deque[float] = deque(maxlen=_INTERVALS)
        self._costs: deque[dict[str, float]] = deque(maxlen=_INTERVALS)

    def took(self, flushes_s: Mapping[str, float]) -> None:
        """Processor seconds of the flush of each dataset that runs."""
        cpu_s, at_s = self._cpu_s(), time.monotonic()
        self._shares.append(100 * (cpu_s - self._seen_s) / max(at_s - self._at_s, 1e-3))
        self._seen_s, self._at_s = cpu_s, at_s
        self._memory_mb.append(resident_mb())
        threads = thread_times_s(flushes_s)
        costs = {name: flush_s + max(0.0, threads.get(name, 0.0) - self._threads.get(name, 0.0))
                 for name, flush_s in flushes_s.items()}
        self._threads = threads
        self._costs.append(costs)

    def excess(self, limits: Limits) -> str | None:
        """Which limit is passed, in words; only after enough intervals, and of the last ones."""
        if len(self._shares) < _INTERVALS:
            return None
        share, memory_mb = sum(self._shares) / _INTERVALS, min(self._memory_mb)
        if limits.cpu_percent is not None and share > limits.cpu_percent:
            return f"{share:.1f} % of a processor, over the limit of {limits.cpu_percent:g} %"
        if limits.memory_mb is not None and memory_mb > limits.memory_mb:
            return f"{memory_mb:.0f} MB of memory, over the limit of {limits.memory_mb} MB"
        return None

    def most_expensive(self) -> str:
        """Of the datasets fed last, the one that took most time lately."""
        return max(self._costs[-1], key=lambda name: sum(costs.get(name, 0.0) for costs in self._costs))

    def forget(self) -> None:
        """After something was closed: what was before says nothing of what is now."""
        self._shares.clear()
        self._memory_mb.clear()
        self._costs.clear()

    def _cpu_s(self) -> float:
        return time.process_time()


def thread_times_s(names: Mapping[str, float]) -> dict[str, float]:
    """Processor seconds of the threads that datasets have of their own: those named as they are."""
    times: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread.name in names and thread.ident is not None:
            try:
                took_s = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            except OSError:
                continue  # it has just ended
            times[thread.name] = times.get(thread.name, 0.0) + took_s
    return times


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / (1 << 20)
