"""Takes what others remember into a database, kernel by kernel, and never lets one of two contradictions vanish."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from kcompat.errors import BadInput
from kcompat.fields import Field
from offset_db import inserts, rows
from offset_db.connection import Corrupt
from offset_db.db import Database
from offset_db.queries import everything
from offset_db.rows import Remembered, Stored

# Kernels per transaction: few enough that other writers get their turn, many enough that fsync does not count.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Absorbed:
    """How much was taken in."""

    kernels: int = 0
    answers: int = 0


def absorb(db: Database, remembered: Iterable[Remembered]) -> Absorbed:
    """Take in all of it, with its times; a kernel is there whole or not at all."""
    total = Absorbed()
    left = iter(remembered)
    while batch := tuple(islice(left, _BATCH)):
        taken = absorb_whole(db, partial(tuple, batch))
        total = Absorbed(total.kernels + taken.kernels, total.answers + taken.answers)
    return total


def merge(db: Database, other: Database) -> Absorbed:
    """Take in another database, whole or not at all. Windows stay there: they are raw memory of that machine."""
    return absorb_whole(db, lambda: _told_of(other))


def _told_of(other: Database) -> Iterator[Remembered]:
    """Damage there is none of the database that is written meanwhile, which would be moved aside for it."""
    try:
        yield from everything(other)
    except Corrupt as error:
        raise BadInput(error.path, error.fault) from error


def absorb_whole(db: Database, read: Callable[[], Iterable[Remembered]]) -> Absorbed:
    """Take in all that `read` gives, in one transaction. It is called again where that had to begin anew.

    Who else writes waits meanwhile: half a minute for 5,000 kernels with every field, a second for DataDog's. Who reads
    does not.
    """
    def write(connection: sqlite3.Connection) -> Absorbed:
        kernels = answers = 0
        for theirs in read():
            kernel_id, new = inserts.put_kernel(connection, theirs.kernel, theirs.first_seen, theirs.last_seen)
            united = _united({} if new else inserts.held(connection, kernel_id), theirs.stored)
            inserts.put_answers(connection, kernel_id, map(rows.answer_row, united), new=new)
            kernels += 1
            answers += len(theirs.stored)
        return Absorbed(kernels, answers)

    return db.change(write)


def _united(held: dict[Field, dict[str, Stored]], told: Iterable[Stored]) -> Iterable[Stored]:
    """What is to be remembered beside what is held. They may contradict each other too, within one file."""
    found: dict[tuple[Field, str], Stored] = {}
    for theirs in told:
        of_field = held.setdefault(theirs.offset.field, {})
        for s in rows.united(of_field, theirs):
            of_field[s.offset.source] = found[s.offset.field, s.offset.source] = s
    return found.values()
