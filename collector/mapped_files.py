"""The files that processes run and have mapped, by what a file is, not by what it is called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from collector.proc_files import PROC, read
from kcompat import overlay
from kcompat.errors import Missing

# Device and inode: what a file is, whatever it is called now and whoever still has it open.
FileId = tuple[int, int]


class Mapped(NamedTuple):
    """A file, by a path that leads to it even when it has been deleted."""

    file: FileId
    path: str


def file_id(path: str) -> FileId:
    """Raises OSError."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def hooked_id(found: Mapped) -> FileId:
    """What a file is to uprobes: of an overlay, the file of a layer, which those of several containers may share."""
    with suppress(Missing, OSError):
        if beneath := overlay.beneath(found.path):
            return file_id(beneath)
    return found.file


def mapped_pages(pid: int, proc: Path = PROC) -> bytes:
    """How much the process has mapped in all: told in a tenth of the time that is taken by what. Raises OSError."""
    return read(pid, "statm", proc).partition(b" ")[0]


def pattern(name: str) -> re.Pattern[bytes]:
    """For `mapped`: lines of /proc/PID/maps whose file's name, without directories, is this regular expression's."""
    return re.compile(rf"^([0-9a-f]+-[0-9a-f]+) \S+ \S+ (\S+ \d+) +/(?:.*/)?(?:{name})(?: \(deleted\))?$".encode(),
                      re.MULTILINE)


def mapped(pid: int, names: re.Pattern[bytes], proc: Path = PROC) -> Iterator[Mapped]:
    """Files of that name the process has mapped, each once. Raises OSError when the process has ended."""
    seen = set()
    for match in names.finditer(read(pid, "maps", proc)):
        if match[2] not in seen:
            seen.add(match[2])
            path = f"{proc}/{pid}/map_files/{match[1].decode()}"
            yield Mapped(file_id(path), path)
