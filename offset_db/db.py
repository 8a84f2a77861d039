"""The memory itself: records what sources say of each kernel, and answers what is held."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from kcompat.errors import BadInput, KcompatError, Missing
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db import inserts, rows, trust
from offset_db.connection import (
    DEADLINE_S,
    Corrupt,
    connect_read_only,
    connect_writable,
    left_alone,
    quick_check,
    told,
    transaction,
    until_free,
)
from offset_db.files import identity, is_writable, move_aside
from offset_db.rows import Disagreement, Remembered, Stored, Unreadable, Window

T = TypeVar("T")

# SQL with its parameters -> rows by column name.
Select = Callable[..., list[Mapping[str, Any]]]

# Answers that came out of the memory, or from nowhere, are not worth remembering.
_NOT_SOURCES = ("db", "none")
# mark_verified is on the path of every hit, and can be done next time.
_UNIMPORTANT_DEADLINE_S = 0.25

_OF_KERNEL = "kernel_id = (SELECT id FROM kernel WHERE build_id = ?)"


class Database:
    """One file of remembered offsets. Use `Database.open`; not to be shared between threads."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, read_only: bool, heals: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._heals = heals
        self._connection = connection
        self._identity = identity(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only: bool = False, heals: bool = True) -> Self:
        """Open the memory, creating it if need be; read-only when asked, or when it cannot be written.

        A damaged file is moved aside and a fresh one made; read-only, or where nothing `heals`, it raises BadInput.
        Raises Missing when there is no file and none can be made.
        """
        resolved = Path(path).expanduser().resolve()
        if read_only or not is_writable(resolved):
            return cls(resolved, until_free(DEADLINE_S, lambda: connect_read_only(resolved)), read_only=True)
        connection = until_free(DEADLINE_S, lambda: connect_writable(resolved, heals=heals))
        return cls(resolved, connection, read_only=False, heals=heals)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def record(self, kernel: Kernel, offsets: Iterable[Offset], windows: Iterable[Window] = ()) -> None:
        """Remember all of it, in one transaction: committed, flushed to disk, or not there at all."""
        at = rows.now()
        answers = [rows.answer_row(Stored(o, at, trust.module_build_id(kernel, o.field)))
                   for o in offsets if o.source not in _NOT_SOURCES]
        samples = list(windows)

        def write() -> None:
            kernel_id = inserts.put_merged(self._connection, kernel, answers, at)
            inserts.put_windows(self._connection, kernel_id, samples)

        self._write(write)

    def read(self, work: Callable[[Select], T]) -> T:
        """Run a query of queries.py, guarded like every other one."""
        return self._guarded(lambda: work(self._select))

    def change(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `work` in one write transaction: committed, flushed to disk if `durable`, or not there at all."""
        return self._write(lambda: work(self._connection), durable=durable)

    def vacuum(self) -> None:
        """Give back the room of what was deleted, and store what is left in order."""
        if self.read_only:
            raise Missing(f"{self.path}: opened read-only, so it cannot be vacuumed; run as root")
        self._guarded(lambda: self._connection.executescript("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)"))

    def offsets(self, kernel: Kernel) -> tuple[Stored, ...]:
        """Every answer held for that build, quarantined ones and those of other module builds included."""
        return self._guarded(lambda: tuple(self._stored(kernel)))

    def windows(self, kernel: Kernel) -> tuple[Window, ...]:
        sql = f'SELECT * FROM "window" WHERE {_OF_KERNEL} ORDER BY id'
        return self._guarded(lambda: tuple(rows.window_of(row) for row in self._select(sql, kernel.key)))

    def kernels(self) -> tuple[Kernel, ...]:
        return self._guarded(lambda: tuple(rows.kernel_of(row) for row in self._select("SELECT * FROM kernel")))

    def show(self, name: str) -> tuple[Remembered, ...]:
        """All that is held of the builds with that key, or of that release: there may be several, or none."""
        sql = "SELECT * FROM kernel WHERE build_id = ? OR release = ? ORDER BY first_seen, id"

        def read() -> tuple[Remembered, ...]:
            found = [(rows.kernel_of(row), row) for row in self._select(sql, name, name)]
            return tuple(Remembered(kernel, row["first_seen"], row["last_seen"], tuple(self._stored(kernel)))
                         for kernel, row in found)

        return self._guarded(read)

    def disagreements(self) -> tuple[Disagreement, ...]:
        """Fields that two sources, neither in quarantine, place differently; `unknown` disagrees with nobody.

        Answers for different builds of the owning module are not about the same thing.
        """
        # SQL narrows it down to the kernels worth reading, trust.contradict decides.
        sql = """
            SELECT DISTINCT kernel.* FROM "offset" JOIN kernel ON kernel.id = kernel_id
            WHERE quarantined_at IS NULL AND state != 'unknown'
            GROUP BY kernel_id, field, module_build_id
            HAVING count(DISTINCT printf('%s %s %s', state, value, bit_offset)) > 1
            ORDER BY kernel.id
        """

        def read() -> tuple[Disagreement, ...]:
            suspects = [rows.kernel_of(row) for row in self._select(sql)]
            return tuple(d for kernel in suspects for d in trust.disagreements(kernel, self._stored(kernel)))

        return self._guarded(read)

    def quarantine(self, kernel: Kernel, field: Field, source: str, reason: str) -> None:
        """That answer has been refuted: keep it to be looked at, but let it answer no more."""
        self._mark(kernel, field, source, rows.now(), reason)

    def release(self, kernel: Kernel, field: Field, source: str) -> None:
        """Take the answer out of quarantine, once the cause of a false alarm is gone."""
        self._mark(kernel, field, source, None, None)

    def mark_verified(self, kernel: Kernel, offsets: Iterable[Offset]) -> None:
        """An event has just confirmed these, whoever says so; not what is said of another place."""
        at = rows.now()
        confirmed = [(at, kernel.key, o.field.name, trust.module_build_id(kernel, o.field), o.offset, o.bit_offset)
                     for o in offsets]

        def write() -> None:
            self._connection.executemany(
                f'UPDATE "offset" SET verified_at = ? WHERE {_OF_KERNEL} AND field = ? AND module_build_id IS ? '
                f"AND value IS ? AND bit_offset IS ? AND state = 'known' AND quarantined_at IS NULL", confirmed)
            self._connection.execute("UPDATE kernel SET last_seen = ? WHERE build_id = ?", (at, kernel.key))

        self._write(write, durable=False, deadline_s=_UNIMPORTANT_DEADLINE_S)

    def _mark(self, kernel: Kernel, field: Field, source: str, at: str | None, reason: str | None) -> None:
        sql = (f'UPDATE "offset" SET quarantined_at = ?, quarantine_reason = ? '
               f"WHERE {_OF_KERNEL} AND field = ? AND source = ?")

        def write() -> int:
            return self._connection.execute(sql, (at, reason, kernel.key, field.name, source)).rowcount

        if not self._write(write):
            raise KcompatError(f"{self.path}: holds no answer from {source!r} for {field} of {kernel.release}")

    def _stored(self, kernel: Kernel) -> Sequence[Stored]:
        return list(rows.decoded(inserts.held(self._connection, kernel)))

    def _select(self, sql: str, *parameters: object) -> list[Mapping[str, Any]]:
        cursor = self._connection.execute(sql, parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def _write(self, work: Callable[[], T], *, durable: bool = True, deadline_s: float = DEADLINE_S) -> T:
        if self.read_only:
            raise Missing(f"{self.path}: opened read-only, so nothing can be recorded; "
                          f"run as root or name a file you may write")

        def write() -> T:
            # Somebody may have deleted the file, or moved it aside: what we commit there would be lost.
            if identity(self.path) != self._identity:
                self._reopen()
            with transaction(self._connection, durable=durable):
                return work()

        return self._guarded(write, deadline_s)

    def _guarded(self, work: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
        """Run `work`, waiting for other writers; if it finds the file damaged, once more on a fresh one."""
        try:
            return until_free(deadline_s, lambda: self._suspecting(work))
        except Corrupt as fault:
            if self.read_only:
                raise
            if not self._heals:
                raise left_alone(fault) from fault
            # Closed only afterwards: SQLite leaves a file that has moved as it is, -wal included.
            move_aside(self.path, self._identity, fault.fault)
            until_free(deadline_s, self._reopen)
            return until_free(deadline_s, lambda: self._suspecting(work))

    def _suspecting(self, work: Callable[[], T]) -> T:
        """Run `work`; where its failure may mean damage that SQLite did not notice, have it look closely."""
        try:
            with told(self.path):
                return work()
        except (sqlite3.OperationalError, Unreadable) as error:
            if fault := quick_check(self._connection, self.path):
                raise Corrupt(self.path, fault) from error
            if isinstance(error, Unreadable):
                raise BadInput(self.path, str(error)) from error
            raise

    def _reopen(self) -> None:
        fresh = connect_writable(self.path, heals=self._heals)
        self._connection.close()
        self._connection = fresh
        self._identity = identity(self.path)
