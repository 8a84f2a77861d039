"""Which address of ours a datagram socket bound to no address used: what the kernel would choose for that peer."""

from __future__ import annotations

import math
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from collector.addresses import V4_MAPPED
from collector.listeners import one_process_each
from guessers.namespace import enter, in_own_thread

_BOUND = 8192
# Addresses and routes of this machine change, and nobody tells us.
_GOOD_S = 120.0
_HERE = Path("/proc/self/ns/net")


class LocalAddresses:
    """Answers (namespace, process, peer) with a local address and remembers it; bounded, the least used goes first."""

    def __init__(self) -> None:
        # With the time of the answer. By process, for the number of a namespace is another's at once when it is gone.
        self._known: OrderedDict[tuple[int, int, bytes], tuple[bytes, float]] = OrderedDict()
        # Of this flush: the namespaces that are gone, a process in each that is not, and what was answered through it.
        self._gone: set[int] = set()
        self._others: dict[int, int] | None = None
        self._through_others: dict[tuple[int, bytes], bytes | None] = {}

    def begin(self) -> None:
        """A flush begins. The number of a namespace that was gone at the last one may be another's by now."""
        self._gone.clear()
        self._others = None
        self._through_others.clear()

    def towards(self, netns: int, pid: int, remote: bytes) -> bytes | None:
        """The 16-byte local address for `remote` in that namespace; None when it cannot be told any more.

        `pid` is a way into the namespace: a process that was in it a moment ago. Which others are left when it
        has ended is found out once a flush, for it takes a look at every process.
        """
        key = (netns, pid, remote)
        local, asked_s = self._known.get(key, (None, -math.inf))
        now_s = time.monotonic()
        if now_s >= asked_s + _GOOD_S and netns not in self._gone:
            # What was so a while ago is better than nothing.
            local, asked_s = self._ask(netns, pid, remote) or local, now_s
        if local is not None:
            self._known[key] = local, asked_s
            self._known.move_to_end(key)
            if len(self._known) > _BOUND:
                self._known.popitem(last=False)
        return local

    def _ask(self, netns: int, pid: int, remote: bytes) -> bytes | None:
        if netns == 0 or (_HERE.exists() and _HERE.stat().st_ino == netns):
            return _route(remote)
        for door in _doors(pid):
            with suppress(OSError):
                return _through(door, netns, remote)
        key = (netns, remote)
        if key not in self._through_others:
            if len(self._through_others) >= _BOUND:
                self._through_others.clear()
            self._through_others[key] = self._ask_another(netns, remote)
        return self._through_others[key]

    def _ask_another(self, netns: int, remote: bytes) -> bytes | None:
        """Through any process in the namespace: one found earlier in this flush, if it has not ended since."""
        while True:
            is_fresh = self._others is None
            self._others = others = one_process_each() if self._others is None else self._others
            if netns not in others:
                break
            with suppress(OSError):
                return _through(Path(f"/proc/{others[netns]}/ns/net"), netns, remote)
            if is_fresh:
                break
            self._others = None
        self._gone.add(netns)
        return None


def _doors(pid: int) -> Iterator[Path]:
    """Files that may stand for the namespace: of the process, and of its threads."""
    process = Path(f"/proc/{pid}")
    yield process / "ns" / "net"
    with suppress(OSError):
        yield from (task / "ns" / "net" for task in (process / "task").iterdir())


def _through(door: Path, netns: int, remote: bytes) -> bytes | None:
    """Raises OSError where the door is gone, or leads elsewhere."""
    fd = os.open(door, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_ino != netns:
            raise FileNotFoundError(door)
        return in_own_thread(partial(_route_in, fd, remote))
    finally:
        os.close(fd)


def _route_in(fd: int, remote: bytes, _: bytes) -> bytes | None:
    try:
        enter(fd)
    except OSError:
        return None
    return _route(remote)


def _route(remote: bytes) -> bytes | None:
    """connect(2) of a datagram socket sends nothing; it only chooses a route and a source address."""
    family = socket.AF_INET if remote.startswith(V4_MAPPED) else socket.AF_INET6
    address = socket.inet_ntop(family, remote[12:] if family == socket.AF_INET else remote)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            local = socket.inet_pton(family, probe.getsockname()[0].partition("%")[0])
    except OSError:
        return None
    return V4_MAPPED + local if family == socket.AF_INET else local
