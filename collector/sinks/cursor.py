"""Where reading goes on after a restart: the number of a file and a byte in it, kept in place with a checksum."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

_CURSOR = struct.Struct("<QQI")


class Cursor:
    """A file of twenty bytes, there from the first `read` on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._unmarked: tuple[int, ...] = ()

    def read(self) -> tuple[int, int]:
        """The file and the byte; the very beginning where it says nothing sound."""
        self._open()
        data = os.pread(self._fd, _CURSOR.size, 0)
        if len(data) == _CURSOR.size:
            number, offset, crc = _CURSOR.unpack(data)
            if crc == _sum(number, offset):
                return number, offset
        return 0, 0

    def mark(self, *at: int) -> None:
        """In place: within a sector, of a file that needs no more room, also where the disk is full.

        Without a place: the last, where the disk did not take it then.
        """
        self._unmarked = at or self._unmarked
        if self._unmarked:
            with contextlib.suppress(OSError):
                self._open()
                os.pwrite(self._fd, _CURSOR.pack(*self._unmarked, _sum(*self._unmarked)), 0)
                self._unmarked = ()

    def _open(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        self.mark()
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1


def _sum(*at: int) -> int:
    return zlib.crc32(b"%d %d" % at)
