"""What waits for a server: on disk, and in memory where the disk cannot take it; in order, bounded, losses counted."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from collector.sinks.chunk import Chunk, Retry
from collector.sinks.segment import sync
from collector.sinks.segments import FULL, Segments
from collector.sinks.trouble import Patience, Trouble

logger = logging.getLogger(__name__)

MEMORY_BYTES = 16 << 20
# Of who ends, with a disk that does not answer.
_PATIENCE_S = 0.5


class _Held(NamedTuple):
    points: int = 0
    lost: int = 0
    oldest_ns: int | None = None
    durable: bool = False


class Spool:
    """Chunks leave as they came. Past its bounds the oldest give way. What it holds is told without waiting for a disk.

    `opened` gives the part on disk and may fail (disk full, not allowed, held by another process): until it does not,
    chunks wait in memory. None: in memory only. Safe for threads.
    """

    def __init__(self, opened: Callable[[Patience], Segments] | None, memory_bytes: int = MEMORY_BYTES) -> None:
        self._opened = opened
        self._disk: Segments | None = None
        self._memory: deque[Chunk] = deque()
        self._memory_bytes = memory_bytes
        self._held_bytes = self._held_points = self._lost = self._lost_on_disk = 0
        self._held = _Held()
        self._sending: Chunk | None = None
        self._trouble, self._patience = Trouble(), Patience()
        self._lock = threading.RLock()
        with self._changing():
            self._open()

    @property
    def durable(self) -> bool:
        """Whether what waits outlives this process."""
        return self._held.durable

    @property
    def lost(self) -> int:
        return self._held.lost

    @property
    def points(self) -> int:
        return self._held.points

    @property
    def oldest_ns(self) -> int | None:
        """When the oldest came."""
        return self._held.oldest_ns

    def append(self, chunk: Chunk) -> None:
        with self._changing():
            self._memory.append(chunk)
            self._held_bytes += len(chunk.payload)
            self._held_points += chunk.points
            fault = self._settle()
            while self._held_bytes > self._memory_bytes:
                # On a full disk a file that gives way makes room; on one that fails it would be lost for nothing.
                if self._disk and self._disk.size and fault in FULL:
                    self._disk.drop_oldest()
                    fault = self._settle()
                else:
                    self._forget()

    def sync(self, *, last: bool) -> None:
        """What stands in full files, or also in the last, survives a power cut from here on.

        It may take seconds: others put and take meanwhile. One that fails is told, and costs no other.
        """
        fds: list[int] = []
        try:
            with self._lock:
                for fd in self._disk.unsynced(last=last) if self._disk else ():
                    fds.append(fd)
        except OSError as error:
            self._tell(error)
        for fd in fds:
            try:
                sync(fd)
            except OSError as error:
                self._tell(error)
            finally:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def head(self) -> Chunk | None:
        """The oldest; it stays until `done`. Retry: it stands on a disk that cannot be read now."""
        with self._changing():
            try:
                chunk = self._disk.head() if self._disk else None
            except OSError as error:
                raise Retry(_said(error)) from None
            if chunk is None and self._memory:
                chunk = self._memory[0]
            self._gave_way()
            self._send(chunk)
            return chunk

    def done(self, chunk: Chunk) -> None:
        """It arrived, or never will."""
        with self._changing():
            self._send(None)
            if self._disk and self._disk.done(chunk.key):
                return
            if self._memory and self._memory[0].key == chunk.key:
                self._left_memory()

    def close(self) -> int:
        """What is in memory only is lost, and what comes later; how many points are left on disk for the next start.

        A disk that does not answer is let go of once it does: whoever goes on with what is there waits for that.
        """
        if not self._lock.acquire(timeout=_PATIENCE_S):
            logger.warning("spool: the disk hangs; what it holds is left to it")
            threading.Thread(target=self._end, name="spool's end", daemon=True).start()
            return 0
        try:
            return self._end()
        finally:
            self._lock.release()

    def _end(self) -> int:
        with self._changing():
            return self._closed()

    def _closed(self) -> int:
        self._settle()
        with contextlib.suppress(Retry):
            self.head()
        self._send(None)
        while self._memory:
            self._forget()
        left = self._disk.points if self._disk else 0
        if self._disk:
            self._lost_on_disk = self._disk.lost
            self._disk.close()
        self._disk, self._opened, self._memory_bytes = None, None, 0
        return left

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            finally:
                disk, first = self._disk, self._memory[0].time_ns if self._memory else None
                told = disk.oldest_ns if disk else None
                self._held = _Held((disk.points if disk else 0) + self._held_points,
                                   self._lost + (disk.lost if disk else self._lost_on_disk),
                                   first if told is None else told, disk is not None and not self._memory)

    def _left_memory(self) -> Chunk:
        chunk = self._memory.popleft()
        self._held_bytes -= len(chunk.payload)
        self._held_points -= chunk.points
        return chunk

    def _settle(self) -> int:
        """From memory to disk, as much as it takes; the number of the error that ended it, or 0."""
        self._open()
        if self._disk is None:
            return 0
        try:
            while self._memory:
                self._disk.put(self._memory[0])
                self._left_memory()
        except OSError as error:
            self._tell(error)
            return error.errno or 0
        if self._trouble.ends():
            logger.info("spool: on disk again")
        return 0

    def _open(self) -> None:
        if self._disk is None and self._opened:
            try:
                self._disk = self._opened(self._patience)
                self._send(self._sending)
            except OSError as error:
                self._tell(error)

    def _send(self, chunk: Chunk | None) -> None:
        """Should this one give way, whether it is lost is seen when the next is asked for."""
        self._sending = chunk
        if self._disk:
            self._disk.in_flight = chunk.key if chunk else b""

    def _gave_way(self) -> None:
        """Counts the one that was being sent, was not taken, and is not there any more."""
        if self._sending and not self._holds(self._sending.key):
            self._lost += self._sending.points

    def _holds(self, key: bytes) -> bool:
        """What is sent from memory may be behind others meanwhile, those of a disk that has been opened."""
        return bool((self._disk and self._disk.holds(key)) or (self._memory and self._memory[0].key == key))

    def _forget(self) -> None:
        oldest = self._left_memory()
        if self._sending is None or oldest.key != self._sending.key:
            self._lost += oldest.points

    def _tell(self, error: OSError) -> None:
        held = "another sink or process uses it" if isinstance(error, BlockingIOError) else ""
        if self._trouble.begins(held or str(error.strerror)):
            logger.warning("spool: %s; up to %d MiB wait in memory", held or _said(error), self._memory_bytes >> 20)


def _said(error: OSError) -> str:
    return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
