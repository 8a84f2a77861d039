"""One kernel of the matrix from its name to its result: fetched, booted, judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.apt import FetchError
from ci.fetch import Image, fetch
from ci.job import Job, Kernel, Run
from ci.kernels import Entry
from ci.verdict import Outcome, Verdict
from ci.vm import boot


@dataclass(frozen=True)
class Result:
    """What became of one kernel; ``image`` and ``run`` are missing if it never got that far."""

    entry: Entry
    verdict: Verdict
    fetch_s: float
    image: Image | None = None
    run: Run | None = None

    def as_json(self) -> dict[str, Any]:
        image, run = self.image, self.run
        return {
            "name": self.entry.name,
            "machine": self.entry.machine,
            "flavour": self.entry.flavour,
            "release": image and image.release,
            "package": image and image.package,
            "version": image and image.version,
            "notes": list(image.notes) if image else [],
            "outcome": self.verdict.outcome.value,
            "reason": self.verdict.reason,
            "exit_status": self.verdict.exit_status,
            "fetch_s": round(self.fetch_s, 2),
            "boot_s": run and run.boot_s,
            "vm_s": run and round(run.total_s, 2),
            "log": str(run.log) if run and run.log else None,
        }


def run_entry(entry: Entry, job: Job, cache: Path, log: Path, progress: Callable[[str], None]) -> Result:
    begun = time.monotonic()
    try:
        image = fetch(entry, cache)
    except FetchError as error:
        return Result(entry, Verdict(Outcome.UNKNOWN, str(error)), time.monotonic() - begun)
    fetched = time.monotonic()
    run = boot(Kernel(image.vmlinuz, image.release), job, log, progress)
    return Result(entry, run.verdict, fetched - begun, image, run)
