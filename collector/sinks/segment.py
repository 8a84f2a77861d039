"""One file of a queue on disk: what is written to it, whole or not at all, and what in it is still to be read."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from collector.sinks.entries import Entry


@dataclass(slots=True, eq=False)
class Segment:
    """`size` is for who writes to change, once all is well."""

    number: int
    path: Path
    fd: int
    size: int = 0
    entries: deque[Entry] = field(default_factory=deque)

    def write(self, data: bytes) -> None:
        """Behind what it has."""
        try:
            if os.pwrite(self.fd, data, self.size) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def deleted(self) -> bool:
        """Whether it is gone. Not yet where a disk is read-only: it is tried again with the next one."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            return False
        return True


def sync(fd: int) -> None:
    """To the disk. The names in a directory are metadata, which fdatasync may leave out."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.fsync(fd)
    else:
        os.fdatasync(fd)
