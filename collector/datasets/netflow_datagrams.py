"""UDP of netflow: the kernel's map of who sends datagrams to whom, made into what is new since the last flush."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from collector.datasets.wording import WAYS, text
from collector.flows import FlowDelta
from collector.local_addresses import LocalAddresses
from collector.proc_files import exists
from collector.seeds import ephemeral
from kcompat.load import Loaded

UNKNOWN_LOCAL = "udp addresses"
"""What is lost where nobody knows a socket's own address any more."""
STATE = struct.Struct("<4Q16s16sHHII16sI")
"""``struct udp_state``."""
_IDLE_NS, _ONE_WAY_IDLE_NS = 120 * 10**9, 30 * 10**9
_MOST_BOUND = 1 << 16  # ports of datagram servers, in all namespaces
# What has been reported, as the map has it in front: birth, read, written.
_COUNTS = struct.Struct("<QQQ")


class Datagrams:
    """`bound`: the (netns, port) that servers of datagrams are known to have. What is lost is counted in `losses`."""

    def __init__(self, loaded: Loaded, bound: set[tuple[int, int]], losses: dict[str, int]) -> None:
        self._table, self._partners = loaded.maps["datagrams"], loaded.maps["partners"]
        self._ended_table = loaded.maps["ended"]
        self._ended: set[int] = set()
        self._bound, self._first_ephemeral = bound, ephemeral()
        self._losses = losses
        self._locals = LocalAddresses()
        self._reported: dict[bytes, bytes] = {}

    def read(self) -> Iterator[FlowDelta]:
        """The map is read when this returns."""
        return self._of(self._table.read(), time.clock_gettime_ns(time.CLOCK_MONOTONIC))

    def _of(self, entries: Iterable[tuple[bytes, bytes]], now: int) -> Iterator[FlowDelta]:
        seen: dict[bytes, bytes] = {}
        gone: set[bytes] = set()
        owners: set[int] = set()
        self._locals.begin()
        for key, value in entries:
            (birth, read, written, last, local, remote, local_port, remote_port, netns, pid, comm,
             direction) = STATE.unpack(value)
            before = self._reported.get(key)
            same, read_before, written_before = _COUNTS.unpack(before) if before else (birth, 0, 0)
            if same != birth:
                read_before = written_before = 0
            idle = now - last
            if ((idle > _IDLE_NS or (idle > _ONE_WAY_IDLE_NS and not (read and written)))
                    and self._table.get(key) == value):
                self._table.delete(key)
                gone.add(key[:8])
            else:
                seen[key] = value[:_COUNTS.size]
                owners.add(pid)
            # A server speaks first when the flow in which it was spoken to is forgotten, or older than we are.
            if direction == 2 and (netns, local_port) in self._bound:
                direction = 1
            elif direction == 1 and local_port < self._first_ephemeral and len(self._bound) < _MOST_BOUND:
                self._bound.add((netns, local_port))
            if (read > read_before or written > written_before) and not local.strip(b"\0\xff"):
                chosen = self._locals.towards(netns, pid, remote)
                if not chosen:
                    self._losses[UNKNOWN_LOCAL] += 1
                    continue
                local = chosen
            yield FlowDelta(local, local_port, remote, remote_port, "udp", netns, pid, text(comm), WAYS[direction],
                            read - read_before, written - written_before)
        self._reported = seen
        if gone:
            for sock in gone.difference(key[:8] for key in seen):
                self._partners.delete(sock)
        self._tell_ended({pid for pid in owners if not exists(pid, "")})

    def _tell_ended(self, ended: set[int]) -> None:
        """Whoever goes on with a flow of theirs owns it. It is not deleted: datagrams in that moment would be lost."""
        for pid in self._ended - ended:
            self._ended_table.delete(pid.to_bytes(4, "little"))
        self._ended &= ended
        with suppress(OSError):  # full: the others keep what they have
            for pid in ended - self._ended:
                self._ended_table.set(pid.to_bytes(4, "little"), bytes(4))
                self._ended.add(pid)
