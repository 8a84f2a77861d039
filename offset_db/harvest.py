"""Reads debug files of many kernels into the memory, each committed as it comes, and goes on where it stopped."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kcompat.errors import BadInput
from kcompat.kernel import Kernel
from offset_db import inserts
from offset_db.db import Database
from offset_db.harvest_cluster import reports
from offset_db.harvest_ledger import Ledger, put_done
from offset_db.harvest_paths import Candidate, candidates
from offset_db.harvest_report import Prepared

Ending = Literal["done", "known", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went with one path, and the kernels that were recorded from it, which a failed one may have too.

    `known` is a file an earlier harvest was done with.
    """

    path: str
    ending: Ending
    reasons: tuple[str, ...] = ()
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """The files there are to look at, how many have been, and the last of them."""

    total: int
    looked_at: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Summary:
    outcomes: tuple[Outcome, ...]
    seconds: float

    def of(self, ending: Ending) -> tuple[Outcome, ...]:
        return tuple(o for o in self.outcomes if o.ending == ending)

    @property
    def kernels(self) -> int:
        """How many builds were recorded: several files may be of one."""
        return len({k.key for o in self.outcomes for k in o.kernels})


def default_jobs() -> int:
    """One for each processor this process may run on."""
    return len(os.sched_getaffinity(0))


def harvest(paths: Iterable[str], db: Path, jobs: int, scheduler: str | None = None) -> Generator[Progress, None, None]:
    """Harvests `paths` into the database, which is made if need be, and tells of each file when it is committed.

    Whoever stops listening stops the harvest; what was told of is kept.
    """
    with Database.open(db) as memory:
        ledger = Ledger(memory)
        unread: dict[Path, Candidate] = {}
        early = []
        for candidate in candidates(paths, db):
            if isinstance(candidate, BadInput):
                early.append(Outcome(candidate.path, "failed", (candidate.fault,)))
            elif ledger.knows(candidate):
                early.append(Outcome(str(candidate.path), "known"))
            else:
                unread[candidate.path] = candidate
        total = len(early) + len(unread)
        for count, outcome in enumerate(early, 1):
            yield Progress(total, count, outcome)
        for count, report in enumerate(reports(tuple(unread), jobs, scheduler), len(early) + 1):
            outcome = _outcome(report, named=unread[report.path].named)
            _commit(memory, report, done=outcome.ending != "failed")
            yield Progress(total, count, outcome)


def _commit(memory: Database, report: Prepared, *, done: bool) -> None:
    """What a file gave and that it is done with, or neither.

    Not flushed to disk each time: kill -9 loses nothing of it, and a machine that goes down loses the last kernels
    together with their files' lines in the list, so that the next harvest reads those again.
    """
    def write(connection: sqlite3.Connection) -> None:
        for kernel, answers in report.found:
            inserts.put_merged(connection, kernel, answers, report.at)
        if done:
            put_done(connection, report)

    memory.change(write, durable=False)


def summed_up(outcomes: Iterable[Outcome], started: float) -> Summary:
    return Summary(tuple(sorted(outcomes, key=lambda o: o.path)), time.monotonic() - started)


def _outcome(report: Prepared, *, named: bool) -> Outcome:
    outcome = Outcome(str(report.path), "done", report.faults, tuple(kernel for kernel, _ in report.found))
    # In a directory there may be anything; a file that was asked for by its name is asked to be of use.
    if report.faults or (report.foreign and named):
        return replace(outcome, ending="failed", reasons=report.faults or (report.nothing or "",))
    if report.nothing is not None:
        return replace(outcome, ending="skipped", reasons=(report.nothing,))
    return outcome
