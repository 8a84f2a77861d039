"""Takes what others remember into a database, kernel by kernel, and never lets one of two contradictions vanish."""

from __future__ import annotations

import pickle
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from kcompat.errors import BadInput
from kcompat.fields import Field
from kcompat.kernel import Kernel
from offset_db import inserts, rows
from offset_db.db import Database, Select
from offset_db.queries import everything
from offset_db.rows import Remembered, Row, Stored

# Kernels per transaction: few enough that other writers get their turn, many enough that fsync does not count.
_BATCH = 100
_TABLES = "SELECT sql FROM sqlite_master WHERE name IN ('kernel', 'offset') ORDER BY name"


@dataclass(frozen=True, slots=True)
class Absorbed:
    """How much was taken in."""

    kernels: int = 0
    answers: int = 0


class _Prepared(NamedTuple):
    """What is told of a kernel, with the rows to `put` for it as long as what is held of it is still `held`."""

    kernel: Kernel
    first_seen: str
    last_seen: str
    told: tuple[Row, ...]
    held: tuple[Row, ...]
    put: tuple[Row, ...]


def absorb(db: Database, remembered: Iterable[Remembered]) -> Absorbed:
    """Take in all of it, with its times; a kernel is there whole or not at all."""
    total = Absorbed()
    left = iter(remembered)
    while batch := tuple(islice(left, _BATCH)):
        taken = absorb_whole(db, batch)
        total = Absorbed(total.kernels + taken.kernels, total.answers + taken.answers)
    return total


def merge(db: Database, other: Database) -> Absorbed:
    """Take in another database, whole or not at all. Windows stay there: they are raw memory of that machine."""
    if _tables(db) != _tables(other):
        # What the CHECKs of ours keep out, and columns that are missing, would fail in the middle of it.
        raise BadInput(other.path, "calls itself kcompat's, and has other tables")
    return absorb_whole(db, everything(other))


def _tables(db: Database) -> list[list[str]]:
    """As they were made, however that was laid out."""
    return [row["sql"].split() for row in db.read(lambda select: select(_TABLES))]


def absorb_whole(db: Database, remembered: Iterable[Remembered]) -> Absorbed:
    """Take in all of it in one transaction, which begins when all is read: what is wrong at the end takes nothing in.

    Who else writes waits for it, so it does no more than write. All else is done before, and done again in it only for
    kernels of which another process has written meanwhile.
    """
    # There may be thousands: packed they are some kilobytes each.
    prepared = [zlib.compress(pickle.dumps(_prepared(db, theirs)), 1) for theirs in remembered]

    def write(connection: sqlite3.Connection) -> Absorbed:
        answers = 0
        for packed in prepared:
            one: _Prepared = pickle.loads(zlib.decompress(packed))
            kernel_id, new = inserts.put_kernel(connection, one.kernel, one.first_seen, one.last_seen)
            held = () if new else inserts.held(connection, one.kernel)
            put = one.put if held == one.held else _united(held, one.told)
            inserts.put_answers(connection, kernel_id, put, new=new)
            answers += len(one.told)
        return Absorbed(len(prepared), answers)

    return db.change(write)


def _prepared(db: Database, theirs: Remembered) -> _Prepared:
    told = tuple(map(rows.answer_row, theirs.stored))

    def prepare(select: Select) -> _Prepared:
        held = tuple(tuple(row.values()) for row in select(inserts.HELD, theirs.kernel.key))
        put = _united(held, told)
        # One and the same is packed once.
        return _Prepared(theirs.kernel, theirs.first_seen, theirs.last_seen, told, held, told if put == told else put)

    return db.read(prepare)


def _united(held: Iterable[Row], told: Iterable[Row]) -> tuple[Row, ...]:
    """What is to be written beside what is held. What is told may contradict itself too, within one file."""
    known: dict[Field, dict[str, Stored]] = {}
    for s in rows.decoded(held):
        known.setdefault(s.offset.field, {})[s.offset.source] = s
    found: dict[tuple[Field, str], Stored] = {}
    for theirs in rows.decoded(told):
        of_field = known.setdefault(theirs.offset.field, {})
        for s in rows.united(of_field, theirs):
            of_field[s.offset.source] = found[s.offset.field, s.offset.source] = s
    unchanged = set(held)
    return tuple(row for row in map(rows.answer_row, found.values()) if row not in unchanged)
