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
        self._gone: set[int] = set()

    def begin(self) -> None:
        """A flush begins. The number of a namespace that was gone at the last one may be another's by now."""
        self._gone.clear()

    def towards(self, netns: int, pid: int, remote: bytes) -> bytes | None:
        """The 16-byte local address for `remote` in that namespace; None when it cannot be told any more.

        `pid` is a way into the namespace: a process that was in it a moment ago. That none is left is found out once
        a flush, for it takes a look at every process.
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
        for door in _doors(netns, pid):
            try:
                fd = os.open(door, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                if os.fstat(fd).st_ino == netns:
                    return in_own_thread(partial(_route_in, fd, remote))
            finally:
                os.close(fd)
        self._gone.add(netns)
        return None


def _doors(netns: int, pid: int) -> Iterator[Path]:
    """Files that may stand for the namespace: of the process, of its threads, of any process that is in it."""
    process = Path(f"/proc/{pid}")
    yield process / "ns" / "net"
    with suppress(OSError):
        yield from (task / "ns" / "net" for task in (process / "task").iterdir())
    if other := one_process_each().get(netns):
        yield Path(f"/proc/{other}/ns/net")


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
