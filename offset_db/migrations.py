"""The schema of the memory, and how an empty or older file reaches it."""

from __future__ import annotations

import sqlite3

import sqlite_utils
from sqlite_utils.migrations import Migrations

from offset_db.connection import APPLICATION_ID, SCHEMA_VERSION

migrations = Migrations("kcompat")

# The CHECKs are what lets `PRAGMA quick_check` tell a damaged row from a good one. Tables are not STRICT: that
# needs SQLite 3.37, and RHEL 9 has 3.34.
_FIRST = (
    """
    CREATE TABLE kernel (
        id INTEGER PRIMARY KEY,
        build_id TEXT NOT NULL UNIQUE,
        release TEXT NOT NULL,
        version TEXT NOT NULL,
        machine TEXT NOT NULL,
        modules TEXT NOT NULL CHECK (json_valid(modules)),
        first_seen TEXT NOT NULL,
        last_seen TEXT NOT NULL
    )
    """,
    # WITHOUT ROWID: the answers for one kernel lie side by side, which is how they are asked for.
    """
    CREATE TABLE "offset" (
        kernel_id INTEGER NOT NULL REFERENCES kernel(id) ON DELETE CASCADE,
        field TEXT NOT NULL CHECK (typeof(field) = 'text'),
        source TEXT NOT NULL CHECK (typeof(source) = 'text'),
        module_build_id TEXT,
        value INTEGER CHECK (typeof(value) IN ('integer', 'null')),
        width INTEGER CHECK (typeof(width) IN ('integer', 'null')),
        bit_offset INTEGER CHECK (typeof(bit_offset) IN ('integer', 'null')),
        bit_size INTEGER CHECK (typeof(bit_size) IN ('integer', 'null')),
        state TEXT NOT NULL CHECK (state IN ('known', 'absent', 'unknown')),
        verdict TEXT NOT NULL CHECK (verdict IN ('ok', 'ambiguous', 'absent', 'unverified')),
        confidence REAL NOT NULL CHECK (typeof(confidence) = 'real'),
        candidates TEXT NOT NULL CHECK (json_valid(candidates)),
        reason TEXT,
        evidence TEXT NOT NULL CHECK (json_valid(evidence)),
        recorded_at TEXT NOT NULL,
        verified_at TEXT,
        quarantined_at TEXT,
        quarantine_reason TEXT,
        PRIMARY KEY (kernel_id, field, source),
        CHECK ((value IS NOT NULL) = (state = 'known'))
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE "window" (
        id INTEGER PRIMARY KEY,
        kernel_id INTEGER NOT NULL REFERENCES kernel(id) ON DELETE CASCADE,
        run TEXT NOT NULL,
        object TEXT NOT NULL,
        hook TEXT NOT NULL,
        bytes BLOB NOT NULL CHECK (typeof(bytes) = 'blob'),
        expected TEXT NOT NULL CHECK (json_valid(expected))
    )
    """,
    "CREATE INDEX idx_kernel_release ON kernel(release)",
    'CREATE INDEX idx_window_kernel_id_run ON "window"(kernel_id, run)',
)


@migrations()
def m001_first(db: sqlite_utils.Database) -> None:
    for statement in _FIRST:
        db.execute(statement)


@migrations()
def m002_harvested(db: sqlite_utils.Database) -> None:
    """Files a harvest is done with. `head` is the SHA-256 of the first 64 KiB, `catalogue` what was looked for."""
    db.execute("""
        CREATE TABLE harvested (
            path BLOB PRIMARY KEY,
            size INTEGER NOT NULL,
            mtime_ns INTEGER NOT NULL,
            head TEXT NOT NULL,
            catalogue TEXT NOT NULL,
            reason TEXT,
            harvested_at TEXT NOT NULL
        ) WITHOUT ROWID
    """)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an empty or older file to SCHEMA_VERSION; the caller holds the write lock, and commits.

    `user_version` repeats what the table of migrations says because it can be read without sqlite-utils.
    """
    migrations.apply(sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
