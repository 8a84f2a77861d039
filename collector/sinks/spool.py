"""What waits for a server: on disk, and in memory where the disk cannot take it; in order, bounded, losses counted."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections import deque
from collections.abc import Callable

from collector.sinks.chunk import Chunk, Retry
from collector.sinks.segments import Segments
from collector.sinks.trouble import Trouble

logger = logging.getLogger(__name__)

MEMORY_BYTES = 16 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Spool:
    """Chunks leave as they came. Past its bounds the oldest give way.

    `opened` gives the part on disk and may fail (disk full, not allowed, held by another process): until it does not,
    chunks wait in memory. None: in memory only. Safe for threads.
    """

    def __init__(self, opened: Callable[[], Segments] | None, memory_bytes: int = MEMORY_BYTES) -> None:
        self._opened = opened
        self._disk: Segments | None = None
        self._memory: deque[Chunk] = deque()
        self._memory_bytes = memory_bytes
        self._held_bytes = self._lost = self._lost_on_disk = 0
        self._sending: Chunk | None = None
        self._trouble = Trouble()
        self._lock = threading.RLock()
        with self._lock:
            self._open()

    @property
    def durable(self) -> bool:
        """Whether what waits outlives this process."""
        with self._lock:
            return self._disk is not None and not self._memory

    @property
    def lost(self) -> int:
        with self._lock:
            return self._lost + (self._disk.lost if self._disk else self._lost_on_disk)

    @property
    def points(self) -> int:
        with self._lock:
            return (self._disk.points if self._disk else 0) + sum(chunk.points for chunk in self._memory)

    @property
    def oldest_ns(self) -> int | None:
        """When the oldest came."""
        with self._lock:
            told = self._disk.oldest_ns if self._disk else None
            return told if told is not None else self._memory[0].time_ns if self._memory else None

    def append(self, chunk: Chunk) -> None:
        with self._lock:
            self._memory.append(chunk)
            self._held_bytes += len(chunk.payload)
            fault = self._settle()
            while self._held_bytes > self._memory_bytes:
                # On a full disk a file that gives way makes room; on one that fails it would be lost for nothing.
                if self._disk and self._disk.size and fault in _FULL:
                    self._disk.drop_oldest()
                    fault = self._settle()
                else:
                    self._forget()

    def sync(self) -> None:
        with self._lock:
            if self._disk:
                try:
                    self._disk.sync()
                except OSError as error:
                    self._tell(error)

    def head(self) -> Chunk | None:
        """The oldest; it stays until `done`. Retry: it stands on a disk that cannot be read now."""
        with self._lock:
            try:
                chunk = self._disk.head() if self._disk else None
            except OSError as error:
                raise Retry(_said(error)) from None
            if chunk is None and self._memory:
                chunk = self._memory[0]
            self._gave_way(chunk)
            self._send(chunk)
            return chunk

    def done(self, chunk: Chunk) -> None:
        """It arrived, or never will."""
        with self._lock:
            self._send(None)
            if self._disk and self._disk.done(chunk.key):
                return
            if self._memory and self._memory[0].key == chunk.key:
                self._memory.popleft()
                self._held_bytes -= len(chunk.payload)

    def close(self) -> int:
        """What is in memory only is lost; how many points are left on disk for the next start."""
        with self._lock:
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
            self._disk, self._opened = None, None
            return left

    def _settle(self) -> int:
        """From memory to disk, as much as it takes; the number of the error that ended it, or 0."""
        self._open()
        if self._disk is None:
            return 0
        try:
            while self._memory:
                self._disk.put(self._memory[0])
                self._held_bytes -= len(self._memory.popleft().payload)
        except OSError as error:
            self._tell(error)
            return error.errno or 0
        if self._trouble.ends():
            logger.info("spool: on disk again")
        return 0

    def _open(self) -> None:
        if self._disk is None and self._opened:
            try:
                self._disk = self._opened()
                self._send(self._sending)
            except OSError as error:
                self._tell(error)

    def _send(self, chunk: Chunk | None) -> None:
        """Should this one give way, whether it is lost is seen when the next is asked for."""
        self._sending = chunk
        if self._disk:
            self._disk.in_flight = chunk.key if chunk else b""

    def _gave_way(self, oldest: Chunk | None) -> None:
        """Counts the one that was being sent, was not taken, and is not there any more."""
        if self._sending and (oldest is None or oldest.key != self._sending.key):
            self._lost += self._sending.points

    def _forget(self) -> None:
        oldest = self._memory.popleft()
        self._held_bytes -= len(oldest.payload)
        if self._sending is None or oldest.key != self._sending.key:
            self._lost += oldest.points

    def _tell(self, error: OSError) -> None:
        held = "another sink or process uses it" if isinstance(error, BlockingIOError) else ""
        if self._trouble.begins(held or str(error.strerror)):
            logger.warning("spool: %s; up to %d MiB wait in memory", held or _said(error), self._memory_bytes >> 20)


def _said(error: OSError) -> str:
    return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
