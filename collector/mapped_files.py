"""The files that processes run and have mapped, by what a file is, not by what it is called.

A path through /proc/PID leads elsewhere once the process runs another program: what is read of a file and what is done
to it is so by one descriptor of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from collector.proc_files import PROC, read
from kcompat import overlay
from kcompat.errors import Missing
from kcompat.foreign_file import ForeignFile

# Device and inode: what a file is, whatever it is called now and whoever still has it open.
FileId = tuple[int, int]
# And its size and when it was last written to: another one when it was overwritten, or its inode is another's by now.
Edition = tuple[int, int, int, int]


def file_id(path: str) -> FileId:
    """Raises OSError."""
    return edition(path)[:2]


def edition(path: str) -> Edition:
    """Raises OSError."""
    return _edition(Path(path).stat())


def opened(file: ForeignFile) -> Edition:
    return _edition(os.fstat(file.fileno()))


def _edition(found: os.stat_result) -> Edition:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def leads_to(path: str, file: Edition) -> bool:
    """Whether it still does, and that is as it was."""
    with suppress(OSError):
        return edition(path) == file
    return False


def hooked(file: ForeignFile, path: str) -> Edition:
    """What a file is to uprobes: of an overlay, the file of a layer, which those of several containers may share.

    The path it was opened by tells whose mounts to ask. Right only if that led to it until now (`leads_to`).
    """
    with suppress(Missing, OSError):
        if beneath := overlay.beneath(path, file=file.fileno()):
            return edition(beneath)
    return opened(file)


def others_of(file: Edition, known: Iterable[Edition]) -> list[Edition]:
    """What is known of that file as it was before: nothing there need stand where it stood."""
    return [other for other in known if other[:2] == file[:2] and other != file]


def mapped_pages(pid: int, proc: Path = PROC) -> bytes:
    """How much the process has mapped in all: told in a tenth of the time that is taken by what. Raises OSError."""
    return read(pid, "statm", proc).partition(b" ")[0]


def pattern(name: str) -> re.Pattern[bytes]:
    """For `mapped`: lines of /proc/PID/maps whose file's name, without directories, is this regular expression's."""
    return re.compile(rf"^([0-9a-f]+-[0-9a-f]+) \S+ \S+ (\S+ \d+) +/(?:.*/)?(?:{name})(?: \(deleted\))?$".encode(),
                      re.MULTILINE)


def mapped(pid: int, names: re.Pattern[bytes], proc: Path = PROC) -> Iterator[str]:
    """Paths to files of that name the process has mapped, each once, that lead to them even when they were deleted.

    Raises OSError when the process has ended.
    """
    seen = set()
    for match in names.finditer(read(pid, "maps", proc)):
        if match[2] not in seen:
            seen.add(match[2])
            yield f"{proc}/{pid}/map_files/{match[1].decode()}"
