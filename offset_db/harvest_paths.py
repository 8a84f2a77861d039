"""Which files a harvest is to read: files, directories, globs and lists of paths become candidates, each once."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kcompat.errors import BadInput

Inode = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file to read. `named` by the user it must be of use; found in a directory it may be anything."""

    path: Path
    size: int
    mtime_ns: int
    named: bool


def listed(text: bytes) -> list[str]:
    """The paths of a list, one a line, or each ended by a NUL as ``find -print0`` does."""
    separator = b"\0" if b"\0" in text else b"\n"
    return [os.fsdecode(line) for line in text.split(separator) if line.strip()]


def candidates(paths: Iterable[str], database: Path | None = None) -> Iterator[Candidate | BadInput]:
    """Every regular file of `paths`, and an error for each path that leads nowhere.

    The files of the `database` that is harvested into are none of them, unless they are named.
    """
    own = {_absolute(f"{database}{suffix}") for suffix in ("", "-wal", "-shm")} if database else set()
    seen: set[Inode] = set()
    for name in paths:
        matches = [name]
        if not os.path.lexists(name) and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
            if not matches:
                yield BadInput(name, "no file matches")
        for match in matches:
            # Absolute, because a worker has another working directory, and the same file is the same next time.
            for found in _below(_absolute(match), named=True, above=(), seen=seen):
                if not isinstance(found, Candidate) or found.named or found.path not in own:
                    yield found


def _absolute(path: str) -> Path:
    """Without `..`, which Path.absolute() leaves in."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _below(path: Path, *, named: bool, above: Sequence[Inode], seen: set[Inode]) -> Iterator[Candidate | BadInput]:
    try:
        found = path.stat()
        inode = found.st_dev, found.st_ino
        if inode in above:
            yield BadInput(path, "a directory loop: it leads back to a directory above it")
        elif inode in seen:
            return
        elif stat.S_ISDIR(found.st_mode):
            seen.add(inode)
            for entry in sorted(path.iterdir()):
                yield from _below(entry, named=False, above=(*above, inode), seen=seen)
        elif stat.S_ISREG(found.st_mode):
            seen.add(inode)
            yield Candidate(path, found.st_size, found.st_mtime_ns, named)
        elif named:
            yield BadInput(path, "neither a file nor a directory")
    except OSError as error:
        yield BadInput(path, error.strerror or str(error))
