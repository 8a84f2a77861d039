"""A file that is rotated by size and by age, with the standard library's renaming of what is kept."""

from __future__ import annotations

import os
import time
from io import FileIO
from logging.handlers import RotatingFileHandler
from pathlib import Path

from collector.sinks.files import FileStream


class RotatingStream(FileStream):
    """Files are `PATH`, then `PATH.1` and so on, the oldest last; each begins with a whole line."""

    def __init__(self, path: Path, file: FileIO, max_bytes: int, max_age_s: float, keep: int) -> None:
        super().__init__(path, file)
        self._max_bytes, self._max_age_s = max_bytes, max_age_s
        self._names = RotatingFileHandler(path, backupCount=keep, delay=True)
        self._since = self._begun()

    def close(self) -> None:
        super().close()
        self._names.close()

    def _turn(self, size: int) -> None:
        super()._turn(size)
        held = os.fstat(self._file.fileno()).st_size
        too_large = bool(self._max_bytes) and held + size > self._max_bytes
        too_old = bool(self._max_age_s) and time.time() - self._since >= self._max_age_s
        if held and (too_large or too_old):
            self._names.doRollover()
            self._reopen()

    def _reopen(self) -> None:
        super()._reopen()
        self._since = time.time()

    def _begun(self) -> float:
        """An earlier collector's file goes on: it is as old as the first write to it that is still known."""
        status = os.fstat(self._file.fileno())
        return status.st_mtime if status.st_size else time.time()
