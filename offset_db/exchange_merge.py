"""Takes what others remember into a database, kernel by kernel, and never lets one of two contradictions vanish."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from offset_db import rows
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
            kernel_id = _kernel_id(connection, theirs)
            for row in _united(connection, kernel_id, theirs):
                # The names of the columns come from rows.offset_row, never from what is read.
                connection.execute(f'INSERT OR REPLACE INTO "offset" ({", ".join(row)}) '
                                   f'VALUES ({", ".join("?" * len(row))})', tuple(row.values()))

    db.change(write)


def _united(connection: sqlite3.Connection, kernel_id: int, theirs: Remembered) -> list[dict[str, object]]:
    cursor = connection.execute('SELECT * FROM "offset" WHERE kernel_id = ?', (kernel_id,))
    names = [column[0] for column in cursor.description]
    stored = [rows.stored_of(dict(zip(names, row, strict=True))) for row in cursor]
    held = {(s.offset.field, s.offset.source): s for s in stored if s}
    return [rows.offset_row(kernel_id, answer) for new in theirs.stored
            for answer in rows.united(held.get((new.offset.field, new.offset.source)), new)]


def _kernel_id(connection: sqlite3.Connection, theirs: Remembered) -> int:
    """The row of that kernel, made or brought up to date."""
    kernel = theirs.kernel
    held = connection.execute("SELECT id, modules FROM kernel WHERE build_id = ?", (kernel.key,)).fetchone()
    if held is None:
        made = connection.execute(
            "INSERT INTO kernel (build_id, release, version, machine, modules, first_seen, last_seen) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (kernel.key, kernel.release, kernel.version, kernel.machine, rows.to_json(kernel.modules),
             theirs.first_seen, theirs.last_seen))
        return int(made.lastrowid or 0)
    kernel_id, modules = held
    connection.execute(
        "UPDATE kernel SET modules = ?, first_seen = min(first_seen, ?), last_seen = max(last_seen, ?) WHERE id = ?",
        (rows.to_json(dict(kernel.modules) | rows.from_json(modules)), theirs.first_seen, theirs.last_seen, kernel_id))
    return int(kernel_id)
