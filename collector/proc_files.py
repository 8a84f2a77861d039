"""Files of processes in /proc, by strings: pathlib would have every pid there ever was in the table of all names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def pids(proc: Path = PROC) -> Iterator[int]:
    """Every process there is now."""
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            yield int(entry.name)


def read(pid: int | str, name: str, proc: Path = PROC) -> bytes:
    """Raises OSError, as all of these when the process has ended."""
    with open(f"{proc}/{pid}/{name}", "rb") as file:  # noqa: PTH123
        return file.read()


def link(pid: int | str, name: str, proc: Path = PROC) -> str:
    """Where a symbolic link leads. Raises OSError."""
    return os.readlink(f"{proc}/{pid}/{name}")  # noqa: PTH115


def names(pid: int | str, name: str, proc: Path = PROC) -> list[str]:
    """What a directory has in it. Raises OSError."""
    return os.listdir(f"{proc}/{pid}/{name}")  # noqa: PTH208


def inode(pid: int | str, name: str, proc: Path = PROC) -> int:
    """Of what a link leads to, as of a namespace. Raises OSError."""
    return os.stat(f"{proc}/{pid}/{name}").st_ino  # noqa: PTH116


def exists(pid: int | str, name: str, proc: Path = PROC) -> bool:
    """Whether it is there, and may be looked at."""
    return os.path.exists(f"{proc}/{pid}/{name}")  # noqa: PTH110
