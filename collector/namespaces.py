"""The network namespaces there are, each with a file that leads into it."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from collector.listeners import one_process_each
from guessers.namespace import enter, in_own_thread
from kcompat.privileges import explained

log = logging.getLogger(__name__)
T = TypeVar("T")

# The number the programs use too where the kernel has no namespaces.
ONLY = 0
_NSFS = re.compile(r"^\S+ \S+ \S+ net:\[(\d+)\] (\S+) ")
_ESCAPED = re.compile(r"\\([0-7]{3})")
# What there is too little of now may be there at the next look.
_PASSING = frozenset((errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EAGAIN))


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


class Refused:
    """Namespaces that nothing is seen of, each told once; where the reason may pass they are tried at every look."""

    def __init__(self, words: str) -> None:
        """`words` are the warning's, with the namespace's number and the reason in it."""
        self._words = words
        self._is_for_good: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self._is_for_good)

    def __contains__(self, netns: int) -> bool:
        return netns in self._is_for_good

    def keep(self, there: Collection[int]) -> None:
        """Forgets those that are gone."""
        self._is_for_good = {netns: it_is for netns, it_is in self._is_for_good.items() if netns in there}

    def to_try(self, new: Iterable[int]) -> set[int]:
        return {netns for netns in new if not self._is_for_good.get(netns)}

    def add(self, netns: int, reason: OSError | str) -> None:
        """For good only by an error that does not pass."""
        if netns not in self._is_for_good:
            log.warning(self._words, netns, reason if isinstance(reason, str) else explained(reason))
        self._is_for_good[netns] = isinstance(reason, OSError) and reason.errno not in _PASSING

    def discard(self, netns: int) -> None:
        self._is_for_good.pop(netns, None)
