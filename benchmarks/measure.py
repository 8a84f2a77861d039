"""What a benchmark returns: lines with samples, a target and a verdict; and how they are shown."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from kcompat.errors import KcompatError, Missing

REPOSITORY = Path(__file__).resolve().parent.parent
_PATIENCE_S = 120.0
_MOMENT_S = 0.08
_IDLE = 0.85
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """What the median should be."""

    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value < self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Line:
    """One measured thing. Times are in milliseconds."""

    what: str
    samples: tuple[float, ...]
    unit: str = "ms"
    target: Target | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return median(self.samples)

    @property
    def p95(self) -> float:
        """Of a few samples the largest."""
        return quantiles(self.samples, n=20, method="inclusive")[-1] if len(self.samples) > 1 else self.samples[0]

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "PASS" if self.target.met(self.median) else "short of target"

    def cells(self) -> tuple[str, ...]:
        target = f"{self.target} {self.unit}".strip() if self.target else ""
        return (self.what, _number(self.median, self.unit), _number(self.p95, self.unit), self.unit, target,
                self.verdict, self.note)

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "unit": self.unit, "median": round(self.median, 3), "p95": round(self.p95, 3),
                "samples": [round(s, 3) for s in self.samples], "note": self.note,
                "target": str(self.target) if self.target else None, "verdict": self.verdict or None}


HEADINGS = ("what", "median", "p95", "unit", "target", "verdict", "note")


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark's outcome: what it measures in a sentence, the lines, and remarks made from what was seen."""

    name: str
    title: str
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]
    load: tuple[float, float]
    """Load average before and after: above the number of processors others were at work too."""
    begun: int
    busy: int
    """Repetitions, and those of them that began while others were at work."""

    def as_json(self) -> dict[str, Any]:
        return {"title": self.title, "load_before": round(self.load[0], 2), "load_after": round(self.load[1], 2),
                "repetitions": self.begun, "began_busy": self.busy,
                "lines": [line.as_json() for line in self.lines], "remarks": list(self.remarks)}


def of(what: str, samples: Iterable[float], *, unit: str = "ms", target: Target | None = None, note: str = "") -> Line:
    """A line from samples in seconds, or in whatever else the unit says."""
    factor = 1000.0 if unit == "ms" else 1.0
    return Line(what, tuple(s * factor for s in samples), unit, target, note)


class Repetitions:
    """Repeats a measurement, each time after a wait for a quiet moment; counts those that did not get one."""

    def __init__(self, times: int, patience_s: float) -> None:
        self.times = times
        self._patience_s = patience_s
        self.begun = self.busy = 0

    def of(self, work: Callable[[], T]) -> list[T]:
        return list(self._each(work))

    def fresh(self, *arguments: str) -> list[dict[str, Any]]:
        """What ``python -m benchmarks.once ARGUMENTS`` reports each time."""
        return self.of(lambda: once(*arguments))

    def _each(self, work: Callable[[], T]) -> Iterator[T]:
        for _ in range(self.times):
            self.begun += 1
            self.busy += not _quiet(self._patience_s)
            yield work()


def once(*arguments: str) -> dict[str, Any]:
    """One measurement of benchmarks/once.py, in an interpreter of its own."""
    reported: dict[str, Any] = json.loads(timed([sys.executable, "-m", "benchmarks.once", *arguments])[1])
    return reported


def _quiet(patience_s: float) -> bool:
    """Whether the processors were idle for a moment before the patience ran out."""
    give_up = time.monotonic() + patience_s
    while True:
        idle, total = _jiffies()
        time.sleep(_MOMENT_S)
        idle_then, total_then = _jiffies()
        if idle_then - idle >= _IDLE * (total_then - total):
            return True
        if time.monotonic() > give_up:
            return False


def _jiffies() -> tuple[int, int]:
    """Of all processors since boot: idle (or waiting for a disk), and all together. proc_stat(5)."""
    numbers = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return numbers[3] + numbers[4], sum(numbers)


def children_s() -> float:
    """Processor time of all children that have ended, and so of both ends of a load that is one's children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: Sequence[str], patience_s: float = _PATIENCE_S, fine: Container[int] = (0,)) -> tuple[float, bytes]:
    """The wall time and the output of a command.

    Raises Missing without it, KcompatError when its exit status is none of those that are `fine`.
    """
    started = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=patience_s, check=False)
    except FileNotFoundError as error:
        raise Missing(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise KcompatError(f"{' '.join(command[:4])}: no end after {patience_s:.0f} s") from error
    seconds = time.perf_counter() - started
    if done.returncode not in fine:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise KcompatError(f"{' '.join(command[:4])}: exit {done.returncode}: {words[-1]}")
    return seconds, done.stdout


def cpu(runs: Iterable[Mapping[str, Any]]) -> str:
    """The processor's share of the time: on a busy machine less than went by."""
    return f"processor {of('', (r['cpu_s'] for r in runs)).median:.0f} ms"


def load() -> float:
    return os.getloadavg()[0]


def _number(value: float, unit: str) -> str:
    return f"{value:.1f}" if unit == "ms" else f"{value:g}" if value < 100 else f"{value:.0f}"
