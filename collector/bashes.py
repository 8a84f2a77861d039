"""The bashes that run, and where each kind of them reads its lines: in itself or in a libreadline it shares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from collector.mapped_files import Edition, FileId, edition, file_id, hooked, leads_to, mapped, opened, pattern
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
    program: Edition
    root: FileId
    comm: str


class Target(NamedTuple):
    """A file, what it was opened by, where in it the function begins, and a descriptor of it."""

    file: Edition
    path: str
    offset: int
    descriptor: int


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
            return Bash(pid, edition(_program(pid, proc)), file_id(f"{proc}/{pid}/root"), comm)
    return None


def program_of(pid: int, proc: Path = PROC) -> str:
    """The path of the program a process runs, as it was called when it began. Raises OSError."""
    return link(pid, "exe", proc)


def is_bash(program: str) -> bool:
    """Whether a path, as /proc/PID/exe has it, is a bash's."""
    return bool(_NAME.match(program.removesuffix(_DELETED).rpartition("/")[2]))


def runs(bash: Bash, proc: Path = PROC) -> bool:
    """Whether the process is there and runs the program it was seen to run."""
    return leads_to(_program(bash.pid, proc), bash.program)


@contextmanager
def target(bash: Bash, proc: Path = PROC) -> Iterator[Target]:
    """Where that bash reads lines; the file is open until the context is left.

    Raises KcompatError when it does so nowhere that can be found; of one that has ended or runs another program by now
    (`runs`) neither that nor an OSError says anything.
    """
    for path in _files(bash.pid, proc):
        with ForeignFile(Path(path)) as file:
            offset = function_offset(Elf(file, Path(path)), FUNCTION)
            what = hooked(file, path)
            is_program = path == _program(bash.pid, proc)
            if (is_program and opened(file) != bash.program) or not runs(bash, proc):
                raise ProcessLookupError(f"process {bash.pid} is another one by now")
            if offset is not None:
                yield Target(what, path, offset, file.fileno())
                return
    raise KcompatError(f"{program_of(bash.pid, proc)} of process {bash.pid} has no {FUNCTION}(), "
                       "nor a libreadline that has")


def _files(pid: int, proc: Path) -> Iterator[str]:
    yield _program(pid, proc)
    yield from mapped(pid, _LIBREADLINE, proc)


def _program(pid: int, proc: Path) -> str:
    return f"{proc}/{pid}/exe"
