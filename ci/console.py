"""A guest's console in a log file that cannot grow without bound, its end always kept."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

LOG_LIMIT = 16 << 20
TAIL_LIMIT = 64 << 10


class Console:
    """Takes all a guest prints: writes the first ``limit`` bytes, remembers the last ``tail`` ones."""

    def __init__(self, file: BinaryIO, limit: int = LOG_LIMIT, tail: int = TAIL_LIMIT) -> None:
        self._file = file
        self._room = limit
        self._tail_limit = tail
        self._tail = bytearray()
        self._dropped = 0

    @property
    def path(self) -> Path:
        return Path(self._file.name)

    @property
    def tail(self) -> str:
        return self._tail.decode(errors="replace")

    def feed(self, data: bytes) -> None:
        kept = data[: self._room]
        self._room -= len(kept)
        self._dropped += len(data) - len(kept)
        self._file.write(kept)
        self._file.flush()
        self._tail = (self._tail + data)[-self._tail_limit :]

    def close(self) -> None:
        """Ends the log; a cut one says so and closes with the console's end, where the reason stands."""
        if self._dropped:
            end = self._tail[-self._dropped :]
            self._file.write(b"\n[ci: log full, %d bytes left out]\n" % (self._dropped - len(end)) + end)
        self._file.close()
