"""Takes what others remember into a database, kernel by kernel, and never lets one of two contradictions vanish."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from offset_db import inserts, rows
from offset_db.db import Database
from offset_db.queries import everything
from offset_db.rows import Remembered

# Kernels per transaction: few enough that other writers get their turn, many enough that fsync does not count.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Absorbed:
    """How much was taken in."""

    kernels: int = 0
    answers: int = 0


def absorb(db: Database, remembered: Iterable[Remembered]) -> Absorbed:
    """Take in all of it, with its times; a kernel is there whole or not at all."""
    kernels = answers = 0
    left = iter(remembered)
    while batch := tuple(islice(left, _BATCH)):
        _absorb(db, batch)
        kernels += len(batch)
        answers += sum(len(r.stored) for r in batch)
    return Absorbed(kernels, answers)


def merge(db: Database, other: Database) -> Absorbed:
    """Take in another database. Windows stay where they are: they are raw memory of that machine."""
    return absorb(db, everything(other))


def _absorb(db: Database, batch: Sequence[Remembered]) -> None:
    def write(connection: sqlite3.Connection) -> None:
        for theirs in batch:
            kernel_id, new = inserts.put_kernel(connection, theirs.kernel, theirs.first_seen, theirs.last_seen)
            held = {} if new else inserts.held(connection, kernel_id)
            inserts.put_answers(connection, kernel_id, [
                rows.answer_row(answer) for said in theirs.stored
                for answer in rows.united(held.get((said.offset.field, said.offset.source)), said)], new=new)

    db.change(write)
