"""The bashes that run, and where each kind of them reads its lines: in itself or in a libreadline it shares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from collector.mapped_files import FileId, Mapped, file_id, hooked_id, mapped, pattern
from collector.proc_files import PROC, link, pids, read
from kcompat.elf import Elf
from kcompat.errors import KcompatError
from kcompat.foreign_file import ForeignFile
from kcompat.symbols import function_offset

FUNCTION = "readline"
# Also bash-5.2 and the like, and what a package manager makes of the old one while it puts the new one there.
_NAME = re.compile(r"bash([-.\d][^/]*)?\Z")
_DELETED = " (deleted)"
_LIBREADLINE = pattern(r"libreadline\.so[^/\n]*")


class Bash(NamedTuple):
    """One process that runs a bash; `root` is the directory it takes for /, `comm` what it is called, as sh."""

    pid: int
    program: FileId
    root: FileId
    comm: str


class Target(NamedTuple):
    """A file, by a path that leads to it even when it has been deleted, and where in it the function begins."""

    file: FileId
    path: str
    offset: int


def running(proc: Path = PROC) -> Iterator[Bash]:
    """Every process that runs a bash now. Processes that end meanwhile are left out."""
    for pid in pids(proc):
        if bash := look(pid, proc):
            yield bash


def look(pid: int, proc: Path = PROC) -> Bash | None:
    """The process, if it is there and runs a bash."""
    with suppress(OSError):
        if is_bash(program_of(pid, proc)):
            comm = read(pid, "comm", proc).decode(errors="replace").removesuffix("\n")
            return Bash(pid, file_id(f"{proc}/{pid}/exe"), file_id(f"{proc}/{pid}/root"), comm)
    return None


def program_of(pid: int, proc: Path = PROC) -> str:
    """The path of the program a process runs, as it was called when it began. Raises OSError."""
    return link(pid, "exe", proc)


def is_bash(program: str) -> bool:
    """Whether a path, as /proc/PID/exe has it, is a bash's."""
    return bool(_NAME.match(program.removesuffix(_DELETED).rpartition("/")[2]))


def target(pid: int, proc: Path = PROC) -> Target:
    """Where the bash of that process reads lines.

    Raises KcompatError when it does so nowhere that can be found, OSError when the process has ended.
    """
    program = f"{proc}/{pid}/exe"
    found = Mapped(file_id(program), program)
    if (offset := _offset(program)) is not None:
        return Target(hooked_id(found), program, offset)
    for library in mapped(pid, _LIBREADLINE, proc):
        if (offset := _offset(library.path)) is not None:
            return Target(hooked_id(library), library.path, offset)
    raise KcompatError(f"{program_of(pid, proc)} of process {pid} has no {FUNCTION}(), nor a libreadline that has")


def _offset(path: str) -> int | None:
    with ForeignFile(Path(path)) as data:
        return function_offset(Elf(data, Path(path)), FUNCTION)
