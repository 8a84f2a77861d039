"""Connects to the memory file, writable or read-only, and turns SQLite's errors into one clear line each."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path
from typing import TypeVar

from kcompat.errors import BadInput, KcompatError, Missing
from offset_db.files import check_regular, ensure_exists, identity, is_sqlite, move_aside

APPLICATION_ID = 0x6B636F6D
SCHEMA_VERSION = 2
# Longer than an import, which is whole or not at all, has the lock: some ten seconds for 5,000 kernels.
DEADLINE_S = 30.0
# How long SQLite itself waits for a lock before we look at our own deadline.
_BUSY_SLICE_S = 0.25
_RETRY_S = 0.005
T = TypeVar("T")


class Corrupt(BadInput):
    """The file is damaged, or not SQLite at all."""


class Busy(KcompatError):
    """Another process held the lock."""


def connect_writable(path: Path, *, heals: bool = True) -> sqlite3.Connection:
    """Connect, creating or migrating the file as needed; a damaged one is moved aside first if this `heals`."""
    try:
        return _connect_writable(path, heals)
    except Corrupt as damage:
        if not heals:
            raise left_alone(damage) from damage
        return _connect_writable(path, heals)


def left_alone(damage: Corrupt) -> Corrupt:
    """For who only wants to read: nobody's file is moved by a look into it."""
    return Corrupt(damage.path, f"{damage.fault}; left as it is: the next command that writes it moves it aside")


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Connect without the right to write; a file in WAL mode in a read-only directory included."""
    check_regular(path)
    try:
        with _connected(path, "mode=ro") as connection:
            _require_current(connection, path)
            return connection
    except Missing:
        wal = path.with_name(path.name + "-wal")
        if not path.is_file() or (wal.exists() and wal.stat().st_size):
            raise
    # SQLite cannot create the -shm it wants here. Without a -wal there is nothing in it to miss, so read the
    # file as it stands. (Should a writer checkpoint meanwhile, a read may fail; it cannot be wrong unnoticed
    # for long, because every answer is verified by an event.)
    with _connected(path, "mode=ro&immutable=1") as connection:
        _require_current(connection, path)
        return connection


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Raise what SQLite reports of the outside world as a KcompatError; what is left is a bug or damage."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte is the primary result code (sqlite.org/rescode.html).
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise Corrupt(path, str(error)) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            raise Busy(f"{path}: another process holds it") from error
        if code == sqlite3.SQLITE_FULL:
            raise KcompatError(f"{path}: no space left on the device; nothing was recorded") from error
        if code == sqlite3.SQLITE_IOERR:
            raise KcompatError(f"{path}: {error}: is the disk full or failing? nothing was recorded") from error
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise Missing(f"{path}: {error}; run as root or name a file you may use") from error
        raise


def until_free(deadline_s: float, work: Callable[[], T]) -> T:
    """Run `work` again while another process holds the lock, until the deadline."""
    give_up = time.monotonic() + deadline_s
    while True:
        try:
            return work()
        except Busy:
            if time.monotonic() > give_up:
                raise
            time.sleep(_RETRY_S)


def quick_check(connection: sqlite3.Connection, path: Path) -> str | None:
    """The first fault SQLite finds in the whole file, None when it is sound. Slow: for a file under suspicion."""
    try:
        with told(path):
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except Corrupt as error:
        return error.fault
    return None if answer == "ok" else str(answer)


@contextmanager
def transaction(connection: sqlite3.Connection, *, durable: bool) -> Iterator[None]:
    """One write transaction, all or nothing.

    With WAL, either setting survives kill -9; only FULL (an fsync per commit) survives the machine going down,
    which loading BPF on an odd kernel can cause. Writes that cost little to lose go without.
    IMMEDIATE, because a transaction that reads first and asks for the lock later cannot wait for it.
    """
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        # SQLite has already rolled back after some errors, a full disk among them.
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def _connected(path: Path, query: str) -> Iterator[sqlite3.Connection]:
    """A connection that stays open only if the body succeeds."""
    with told(path):
        # isolation_level None: no transaction that we did not begin ourselves.
        connection = sqlite3.connect(f"{path.as_uri()}?{query}", uri=True, isolation_level=None,
                                     timeout=_BUSY_SLICE_S)
        # Text that is not UTF-8 is damage; where it matters, the row that holds it fails to decode.
        connection.text_factory = methodcaller("decode", "utf-8", "replace")
        try:
            yield connection
        except BaseException:
            connection.close()
            raise


def _schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema of the file, 0 for an empty one; raises BadInput for a file that is not for us to write."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        if connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            raise BadInput(path, "an SQLite database, but not one of kcompat's; left alone")
        return 0
    if version > SCHEMA_VERSION:
        raise BadInput(path, f"written by a newer kcompat (schema {version}, this one knows {SCHEMA_VERSION}): "
                             f"upgrade kcompat or name another file")
    return int(version)


def _require_current(connection: sqlite3.Connection, path: Path) -> None:
    if (version := _schema_version(connection, path)) < SCHEMA_VERSION:
        raise BadInput(path, f"has schema {version}, not {SCHEMA_VERSION}, and cannot be migrated read-only")


def _connect_writable(path: Path, heals: bool) -> sqlite3.Connection:
    check_regular(path)
    ensure_exists(path)
    opened = identity(path)
    with _connected(path, "mode=rw") as connection:
        try:
            with told(path):
                _prepare(connection, path)
        except Corrupt as damage:
            if not is_sqlite(path):
                raise BadInput(path, "not an SQLite database; left alone: name another file") from damage
            if not heals:
                raise
            # Before it is closed: SQLite would tidy up the -wal of a file that is still in its place.
            move_aside(path, opened, damage.fault)
            raise
        return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = _schema_version(connection, path)
    # Says what is already so in all but the first open; a copy made with VACUUM INTO has lost it.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
    if version < SCHEMA_VERSION:
        # sqlite-utils takes 50 ms to import, more than a whole hit may take, and a current file does not need it.
        from offset_db.migrations import migrate

        with transaction(connection, durable=True):
            # Asked again now that we hold the lock: another process may have migrated it, or gone further.
            if _schema_version(connection, path) < SCHEMA_VERSION:
                migrate(connection)
