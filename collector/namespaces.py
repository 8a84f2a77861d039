"""The network namespaces there are, each with a file that leads into it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from collector.listeners import one_process_each
from guessers.namespace import enter, in_own_thread

T = TypeVar("T")

# The number the programs use too where the kernel has no namespaces.
ONLY = 0
_NSFS = re.compile(r"^\S+ \S+ \S+ net:\[(\d+)\] (\S+) ")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def doors(proc: Path = Path("/proc")) -> dict[int, Path]:
    """Namespace number to a file for setns(2): of a process in it, else where it is mounted, as by ip-netns(8)."""
    found = mounted((proc / "self" / "mountinfo").read_text(errors="surrogateescape"))
    for netns, pid in one_process_each(proc).items():
        found[netns] = proc / str(pid) / "ns" / "net"
    return found or {ONLY: proc / "self" / "ns" / "net"}


def mounted(mountinfo: str) -> dict[int, Path]:
    """The network namespaces of the lines of /proc/PID/mountinfo (proc(5)) and where they are mounted."""
    found = {}
    for line in mountinfo.splitlines():
        if match := _NSFS.match(line):
            found[int(match[1])] = Path(_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), match[2]))
    return found


def visit(door: Path, work: Callable[[], T]) -> T:
    """What `work()` returns in the namespace that `door` leads into; sockets it opened stay there. Raises OSError."""
    if not door.exists() and not Path("/proc/self/ns/net").exists():
        return work()
    fd = os.open(door, os.O_RDONLY | os.O_CLOEXEC)

    def there(_: bytes) -> T:
        enter(fd)
        return work()

    try:
        return in_own_thread(there)
    finally:
        os.close(fd)
