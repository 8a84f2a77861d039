"""Kernels and answers into their tables, inside a transaction that somebody else has begun."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from kcompat.fields import Field
from kcompat.kernel import Kernel
from offset_db import rows
from offset_db.rows import Row, Stored, Window

# The values of rows.ANSWER, by a kernel's key.
HELD = f'SELECT {", ".join(rows.ANSWER)} FROM "offset" WHERE kernel_id = (SELECT id FROM kernel WHERE build_id = ?)'
_INTO = f'INTO "offset" (kernel_id, {", ".join(rows.ANSWER)}) VALUES (?{", ?" * len(rows.ANSWER)})'
_PUT_WINDOW = f'INSERT INTO "window" ({", ".join(rows.WINDOW)}) VALUES ({", ".join("?" * len(rows.WINDOW))})'


def put_kernel(connection: sqlite3.Connection, kernel: Kernel, first_seen: str, last_seen: str) -> tuple[int, bool]:
    """The id of that kernel's row, made or brought up to date, and whether it is new.

    Of two builds of a module the one seen last is kept.
    """
    made = connection.execute(
        "INSERT OR IGNORE INTO kernel (build_id, release, version, machine, modules, first_seen, last_seen) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (kernel.key, kernel.release, kernel.version, kernel.machine, rows.to_json(kernel.modules), first_seen,
         last_seen))
    if made.rowcount:
        return int(made.lastrowid or 0), True
    kernel_id, held, seen = connection.execute(
        "SELECT id, modules, last_seen FROM kernel WHERE build_id = ?", (kernel.key,)).fetchone()
    earlier, later = rows.from_json(held), dict(kernel.modules)
    if last_seen < seen:
        earlier, later = later, earlier
    connection.execute(
        "UPDATE kernel SET modules = ?, first_seen = min(first_seen, ?), last_seen = max(last_seen, ?) WHERE id = ?",
        (rows.to_json(earlier | later), first_seen, last_seen, kernel_id))
    return int(kernel_id), False


def held(connection: sqlite3.Connection, kernel: Kernel) -> tuple[Row, ...]:
    """All that is held of that kernel."""
    return tuple(connection.execute(HELD, (kernel.key,)))


def put_answers(connection: sqlite3.Connection, kernel_id: int, answers: Iterable[Row], *, new: bool) -> None:
    """Each of `answers` takes the place of what its source said of its field before; of a `new` kernel none did.

    Plain SQL: to ask SQLite for the shape of the table first, as sqlite-utils does, takes twice the time, and to look
    for what is to be replaced half as much again.
    """
    # The last one of a source about a field: the two are what rows.ANSWER begins with.
    unique = {answer[:2]: (kernel_id, *answer) for answer in answers}
    connection.executemany(f"INSERT {'' if new else 'OR REPLACE'} {_INTO}", unique.values())


def put_merged(connection: sqlite3.Connection, kernel: Kernel, answers: Iterable[Row], at: str) -> int:
    """What sources have said of a kernel, `at` that time, beside what they said before. Returns its id."""
    kernel_id, new = put_kernel(connection, kernel, at, at)
    if not new:
        known = {(s.offset.field, s.offset.source): s for s in rows.decoded(held(connection, kernel))}
        said: dict[tuple[Field, str], Stored] = {}
        for stored in rows.decoded(answers):
            key = stored.offset.field, stored.offset.source
            said[key] = rows.merged(said.get(key, known.get(key)), stored)
        answers = map(rows.answer_row, said.values())
    put_answers(connection, kernel_id, answers, new=new)
    return kernel_id


def put_windows(connection: sqlite3.Connection, kernel_id: int, windows: Iterable[Window]) -> None:
    connection.executemany(_PUT_WINDOW, (rows.window_row(kernel_id, window) for window in windows))
