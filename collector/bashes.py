"""The bashes that run, and where each kind of them reads its lines: in itself or in a libreadline it shares."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kcompat.elf import Elf, open_file
from kcompat.errors import KcompatError
from kcompat.symbols import function_offset

FUNCTION = "readline"
# Also bash-5.2 and the like, and what a package manager makes of the old one while it puts the new one there.
_NAME = re.compile(r"bash([-.\d][^/]*)?\Z")
_DELETED = " (deleted)"
_MAPPED = re.compile(r"^([0-9a-f]+-[0-9a-f]+) \S+ \S+ \S+ \d+ +(/.*/libreadline\.so[^/]*)$")

# Device and inode: what a file is, whatever it is called now and whoever still has it open.
FileId = tuple[int, int]


class Bash(NamedTuple):
    """One process that runs a bash; `root` is the directory it takes for /."""

    pid: int
    program: FileId
    root: FileId


class Target(NamedTuple):
    """A file, by a path that leads to it even when it has been deleted, and where in it the function begins."""

    file: FileId
    path: str
    offset: int


def running(proc: Path = Path("/proc")) -> Iterator[Bash]:
    """Every process that runs a bash now. Processes that end meanwhile are left out."""
    for entry in os.scandir(proc):
        if entry.name.isdigit() and (bash := look(int(entry.name), proc)):
            yield bash


def look(pid: int, proc: Path = Path("/proc")) -> Bash | None:
    """The process, if it is there and runs a bash."""
    with suppress(OSError):
        if is_bash(program_of(pid, proc)):
            return Bash(pid, file_id(f"{proc}/{pid}/exe"), file_id(f"{proc}/{pid}/root"))
    return None


def program_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The path of the program a process runs, as it was called when it began. Raises OSError."""
    return str((proc / str(pid) / "exe").readlink())


def is_bash(program: str) -> bool:
    """Whether a path, as /proc/PID/exe has it, is a bash's."""
    return bool(_NAME.match(program.removesuffix(_DELETED).rpartition("/")[2]))


def target(pid: int, proc: Path = Path("/proc")) -> Target:
    """Where the bash of that process reads lines.

    Raises KcompatError when it does so nowhere that can be found, OSError when the process has ended.
    """
    program = f"{proc}/{pid}/exe"
    file = file_id(program)
    if (offset := _offset(program)) is not None:
        return Target(file, program, offset)
    for line in (proc / str(pid) / "maps").read_text(errors="surrogateescape").splitlines():
        if match := _MAPPED.match(line.removesuffix(_DELETED)):
            library = f"{proc}/{pid}/map_files/{match[1]}"
            if (offset := _offset(library)) is not None:
                return Target(file_id(library), library, offset)
    raise KcompatError(f"{program_of(pid, proc)} of process {pid} has no {FUNCTION}(), nor a libreadline that has")


def _offset(path: str) -> int | None:
    return function_offset(Elf(open_file(Path(path)), Path(path)), FUNCTION)


def file_id(path: str) -> FileId:
    """Raises OSError."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino
