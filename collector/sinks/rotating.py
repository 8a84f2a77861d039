"""A file that is rotated by size and by age, with the standard library's renaming of what is kept."""

from __future__ import annotations

import contextlib
import os
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path


class RotatingStream:
    """A `ByteStream`. Files are `PATH`, then `PATH.1` and so on, the oldest last; each begins with a whole line.

    A file that somebody else has moved away, as logrotate does, is begun anew.
    """

    def __init__(self, path: Path, max_bytes: int, max_age_s: float, keep: int) -> None:
        self._path, self._max_bytes, self._max_age_s = path, max_bytes, max_age_s
        self._names = RotatingFileHandler(path, backupCount=keep, delay=True)
        self._file = path.open("ab", buffering=0)
        self._since = self._begun()
        self._torn = False

    def write(self, data: bytes | memoryview, /) -> int:
        """Called with whole lines; what a full disk cut short is continued in the same file."""
        if self._torn:
            return self._wrote(data)
        if self._moved():
            self._reopen()
        size = os.fstat(self._file.fileno()).st_size
        too_large = bool(self._max_bytes) and size + len(data) > self._max_bytes
        too_old = bool(self._max_age_s) and time.time() - self._since >= self._max_age_s
        if size and (too_large or too_old):
            self._names.doRollover()
            self._reopen()
        return self._wrote(data)

    def close(self) -> None:
        self._file.close()
        self._names.close()

    def _wrote(self, data: bytes | memoryview) -> int:
        done = self._file.write(data) or 0
        self._torn = done < len(data)
        return done

    def _reopen(self) -> None:
        file = self._path.open("ab", buffering=0)
        self._file.close()
        self._file = file
        self._since = time.time()

    def _moved(self) -> bool:
        with contextlib.suppress(OSError):
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        return True

    def _begun(self) -> float:
        """An earlier collector's file goes on: it is as old as the first write to it that is still known."""
        status = os.fstat(self._file.fileno())
        return status.st_mtime if status.st_size else time.time()
