"""The files a harvest is done with, remembered beside their offsets, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from kcompat.fields import CATALOGUE
from offset_db.connection import DEADLINE_S, connect_writable, told, transaction, until_free
from offset_db.harvest_paths import Candidate
from offset_db.harvest_report import Fingerprint, Report, fingerprint
from offset_db.rows import now

# A catalogue with other fields finds other things in the same file.
_LOOKED_FOR = hashlib.sha256(repr(CATALOGUE).encode()).hexdigest()[:16]


class Ledger:
    """One database's list of files. Writes are not flushed to disk: to lose one only costs reading the file again.

    That is why a file is written here after its kernels, which are: the list is never ahead of them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = until_free(DEADLINE_S, lambda: connect_writable(path))
        sql = "SELECT path, size, mtime_ns, head FROM harvested WHERE catalogue = ?"
        with told(path):
            self._known = {name: Fingerprint(*rest) for name, *rest in self._connection.execute(sql, (_LOOKED_FOR,))}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._connection.close()

    def knows(self, candidate: Candidate) -> bool:
        """Whether this very file was read before: same place, size, time and first bytes."""
        known = self._known.get(os.fsencode(candidate.path))
        if known is None or (known.size, known.mtime_ns) != (candidate.size, candidate.mtime_ns):
            return False
        try:
            return fingerprint(candidate.path) == known
        except OSError:
            return False

    def add(self, report: Report) -> None:
        """Done with that file: the next harvest leaves it out."""
        mark = report.fingerprint
        if mark is None:
            return
        # Bytes, because that is what a path is.
        row = (os.fsencode(report.path), mark.size, mark.mtime_ns, mark.head, _LOOKED_FOR, report.nothing, now())

        def write() -> None:
            with told(self._path), transaction(self._connection, durable=False):
                self._connection.execute("INSERT OR REPLACE INTO harvested VALUES (?, ?, ?, ?, ?, ?, ?)", row)

        until_free(DEADLINE_S, write)
