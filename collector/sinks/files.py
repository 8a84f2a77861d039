"""A file that is appended to, and begun anew when somebody has moved it away, as logrotate does."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from io import FileIO
from pathlib import Path

logger = logging.getLogger(__name__)


def opened(path: Path) -> FileIO:
    """To append to, unbuffered. Records are nobody's business but the owner's: whoever may read a new file says so."""
    return FileIO(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def is_file(file: FileIO) -> bool:
    """No pipe, no device."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


class FileStream:
    """A `ByteStream`: a file of whole lines."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path, self._file = path, file
        self._torn = False

    def write(self, data: bytes | memoryview, /) -> int:
        """Called with whole lines; what a full disk cut short is continued in the same file, unless that is deleted."""
        if self._torn and not os.fstat(self._file.fileno()).st_nlink:
            # Held on to, it would keep the disk full. The rest of its line is nobody's.
            self._torn = False
            return bytes(data).find(b"\n") + 1
        if not self._torn:
            self._turn(len(data))
        done = self._file.write(data) or 0
        self._torn = done < len(data)
        return done

    def close(self) -> None:
        """What fails then (NFS writes late) is told: of what was written before, some may not be there."""
        try:
            self._file.close()
        except OSError as error:
            logger.warning("%s: %s: what was written last may be lost", self._path, error.strerror)

    def _turn(self, size: int) -> None:
        """To another file, where that is due before `size` more bytes are written."""
        if self._moved():
            self._reopen()

    def _reopen(self) -> None:
        file = opened(self._path)
        FileStream.close(self)
        self._file = file

    def _moved(self) -> bool:
        with contextlib.suppress(OSError):
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        return True
