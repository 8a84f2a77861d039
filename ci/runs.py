"""A whole run: kernels spread over workers, what they gave gathered into results and an offset database."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from ci.live import Progress
from ci.matrix import REPOSITORY, Kind, Limits, Yield, unknown
from ci.product import remember
from ci.results import MatrixResult
from ci.scheduler import check_all
from ci.store import Store, save
from ci.tools import find_tool


@dataclass(frozen=True)
class Spread:
    """Where kernels run: in so many processes here, or with the workers of a Dask scheduler."""

    jobs: int
    scheduler: str | None = None


def default_jobs(cpus: int) -> int:
    """As many VMs at once as the machine has processors for."""
    return max(1, (os.cpu_count() or 1) // cpus)


def run_matrix(
    kernels: Sequence[Kind], limits: Limits, spread: Spread, store: Store, logs: Path | None, console: Console
) -> MatrixResult:
    """Every check of every kernel, shown while it runs and kept in the store, even of a run that is interrupted.

    Raises SchedulerError, and ProductError if the offset database could not take what was found.
    """
    begun, started = time.monotonic(), datetime.now(UTC)
    given: dict[str, Yield] = {}
    logs = logs or (None if spread.scheduler else store.logs)

    def gathered() -> MatrixResult:
        results = tuple(given[k.name].result if k.name in given else unknown(k, "fetch", "interrupted")
                        for k in kernels)
        seconds = round(time.monotonic() - begun, 1)
        return MatrixResult(started.isoformat(timespec="seconds"), seconds, host(), results, revision())

    try:
        with Progress(console, len(kernels)) as progress:
            for one in check_all(kernels, limits, logs, spread.jobs, spread.scheduler, progress.told):
                given[one.result.name] = one
                progress.ended(one.result)
    finally:
        result = gathered()
        # An interrupted run keeps what it found; one that never began leaves an older run's results alone.
        if given:
            save(result, store.results)
            keep(store.recordings, given.values())
            remember(store.database, [export for one in given.values() for export in one.exports])
    return result


def keep(directory: Path, given: Iterable[Yield]) -> None:
    """The recorded guesses with the judges' answers beside them, as ``tests/data/recordings`` takes them."""
    directory.mkdir(parents=True, exist_ok=True)
    for one in given:
        if one.recording:
            (directory / f"{one.result.name}.guess").write_bytes(one.recording.data)
            (directory / f"{one.result.name}.json").write_text(json.dumps(one.recording.answers, indent=1) + "\n")


def host() -> dict[str, str]:
    """The machine and the emulator, as far as they are in the way of comparing two runs."""
    return {
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        "kernel": platform.release(),
        "qemu": _first_line([find_tool("qemu-system-x86_64") or "qemu-system-x86_64", "--version"]) or "not installed",
    }


def revision() -> str | None:
    """The commit that was tested, marked if the files differ from it."""
    return _first_line(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"])


def _first_line(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.partition("\n")[0] if done.returncode == 0 else None
