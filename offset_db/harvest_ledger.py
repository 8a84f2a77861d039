"""The files a harvest is done with, remembered beside their offsets, so that an interrupted one goes on."""

from __future__ import annotations

import os
import sqlite3

from offset_db.db import Database
from offset_db.harvest_paths import Candidate
from offset_db.harvest_report import LOOKED_FOR, Fingerprint, Prepared, fingerprint


class Ledger:
    """The list of files of one database, as it was when this was made."""

    def __init__(self, db: Database) -> None:
        sql = "SELECT path, size, mtime_ns, head FROM harvested WHERE catalogue = ?"
        self._known = {row["path"]: Fingerprint(row["size"], row["mtime_ns"], row["head"])
                       for row in db.read(lambda select: select(sql, LOOKED_FOR))}

    def knows(self, candidate: Candidate) -> bool:
        """Whether this very file was read before: same place, size, time and first bytes."""
        known = self._known.get(os.fsencode(candidate.path))
        if known is None or (known.size, known.mtime_ns) != (candidate.size, candidate.mtime_ns):
            return False
        try:
            return fingerprint(candidate.path) == known
        except OSError:
            return False


def put_done(connection: sqlite3.Connection, report: Prepared) -> None:
    """Done with that file: the next harvest leaves it out."""
    mark = report.fingerprint
    if mark is not None:
        # Bytes, because that is what a path is.
        row = (os.fsencode(report.path), mark.size, mark.mtime_ns, mark.head, LOOKED_FOR, report.nothing, report.at)
        connection.execute("INSERT OR REPLACE INTO harvested VALUES (?, ?, ?, ?, ?, ?, ?)", row)
