"""Somebody else's file, read piece by piece: who has it mapped is ended (SIGBUS) by whoever makes it shorter."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from kcompat.errors import BadInput
from kcompat.regular import faults_of, open_regular

# No table of a program or a library is larger; what a file says of its own, a hole in it can be.
_LARGEST = 64 << 20


class ForeignFile:
    """Its bytes as slices give them, as long as it was when it was opened. Use it as a context manager.

    A slice raises BadInput where the file has become shorter, or where more than any table takes is asked for.
    """

    def __init__(self, path: Path) -> None:
        """Raises Missing when it is not there or not readable, BadInput when it is no regular file."""
        self._path = path
        with faults_of(path):
            self._file = open_regular(path)
        self._size = os.fstat(self._file.fileno()).st_size

    def __len__(self) -> int:
        return self._size

    def fileno(self) -> int:
        return self._file.fileno()

    def __getitem__(self, wanted: slice) -> bytes:
        start, stop, _ = wanted.indices(self._size)
        size = max(0, stop - start)
        if size > _LARGEST:
            raise BadInput(self._path, f"{size} bytes at {start} are more than it can have in one piece")
        with faults_of(self._path):
            data = os.pread(self._file.fileno(), size, start)
        if len(data) < size:
            raise BadInput(self._path, "it became shorter while it was read")
        return data

    def __enter__(self) -> ForeignFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()
