"""A queue of chunks on disk, bounded in bytes, that outlives kill -9 and power cuts: files of checksummed entries.

`NUMBER.chunks` holds entries, oldest first; what is read next stands in `cursor`. An entry is one write(2). After a
restart reading goes on at the cursor, so at most the chunk that was on its way is sent a second time. Half an entry at
the end of a file was never whole; one whose checksum is wrong is left out and said.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from collector.sinks.chunk import Chunk
from collector.sinks.cursor import Cursor
from collector.sinks.entries import Entry, entries, read, written
from collector.sinks.segment import Segment
from collector.sinks.trouble import Patience

logger = logging.getLogger(__name__)

_LARGEST_SEGMENT = 4 << 20
_SEGMENTS = 16
FULL = (errno.ENOSPC, errno.EDQUOT)
# For so long a disk that cannot be read may become one that can; then what stands there is lost.
_UNREADABLE_S = 600.0
# Instead of the key of a chunk that was dealt with before its turn.
_GONE = b""


class Segments:
    """One process has the directory at a time: BlockingIOError to the second. Not safe for threads by itself.

    `patience` is of all tries to open it: once it is over, what cannot be read is lost, and the rest is there.
    """

    def __init__(self, directory: Path, max_bytes: int, patience: Patience | None = None) -> None:
        self.lost = 0
        self.points = 0
        self._directory, self._max_bytes = directory, max_bytes
        self._segment_bytes = max(1, min(_LARGEST_SEGMENT, max_bytes // _SEGMENTS))
        self._segments: deque[Segment] = deque()
        self._writable = False
        # What is not yet on the disk whatever happens: files that go on no more, directories with new names in them.
        self._full: list[Segment] = []
        self._named = {directory.parent}
        # Files that were dealt with and could not be deleted: no part of the queue any more.
        self._undeleted: list[Segment] = []
        self._patience = patience or Patience()
        # The key of the chunk that is being sent: should it give way, its fate is for the sender to tell.
        self.in_flight = b""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._cursor = Cursor(directory / "cursor")
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self._segments)

    @property
    def oldest_ns(self) -> int | None:
        return next((entry.time_ns for segment in self._segments for entry in segment.entries if entry.key), None)

    def put(self, chunk: Chunk) -> None:
        """At the end; the oldest give way where the bound asks for it, once it is written. OSError: it is not."""
        data = written(chunk)
        if len(data) > self._max_bytes:
            self.lost += chunk.points
            return
        try:
            last = self._write(data)
        except OSError as error:
            # Of a full disk those that give way anyway make room; on one that fails they would be lost for nothing.
            if error.errno not in FULL or not self._segments or self.size + len(data) <= self._max_bytes:
                raise
            self.drop_oldest()
            last = self._write(data)
        self._cursor.mark()
        last.entries.append(Entry(last.size, len(data), chunk.points, chunk.time_ns, chunk.key))
        last.size += len(data)
        self.points += chunk.points
        while self.size > self._max_bytes:
            self.drop_oldest()

    def unsynced(self, *, last: bool) -> Iterator[int]:
        """Descriptors of what a power cut would take: full files, new names, and the last file if that is asked for.

        They are the caller's, for `sync` and to close. OSError: the rest are for the next time.
        """
        self._full = [one for one in self._full if one in self._segments]
        while self._full:
            yield os.dup(self._full[0].fd)
            del self._full[0]
        if last and self._writable:
            yield os.dup(self._segments[-1].fd)
        for directory in tuple(self._named):
            yield os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._named.discard(directory)

    def head(self) -> Chunk | None:
        """The oldest, which stays until `done`. One that is damaged is lost, and said to be. OSError: not now."""
        while (segment := self._first()) is not None:
            entry = segment.entries[0]
            fault = "damaged"
            try:
                if (chunk := read(os.pread(segment.fd, entry.size, entry.offset))) is not None:
                    self._patience.well()
                    return chunk
            except OSError as error:
                self._bear(error, segment.path)
                fault = str(error.strerror)
            logger.warning("%s: %s at byte %d: %d points are lost", segment.path, fault, entry.offset, entry.points)
            self.lost += entry.points if entry.key != self.in_flight else 0
            self._pop(segment)
        return None

    def done(self, key: bytes) -> bool:
        """It has been dealt with, the oldest or not; False if it gave way meanwhile."""
        if (segment := self._holding(key)) is None:
            return False
        at, entry = next((at, entry) for at, entry in enumerate(segment.entries) if entry.key == key)
        segment.entries[at] = entry._replace(key=_GONE, points=0)
        self.points -= entry.points
        self._first()
        return True

    def holds(self, key: bytes) -> bool:
        return self._holding(key) is not None

    def drop_oldest(self) -> None:
        """One file gives way; its points are lost, those `in_flight` excepted."""
        segment = self._segments[0]
        lost = sum(entry.points for entry in segment.entries if entry.key != self.in_flight)
        self.lost += lost
        self.points -= sum(entry.points for entry in segment.entries)
        self._cursor.mark(segment.number, segment.size)
        self._remove(segment)

    def close(self) -> None:
        self._cursor.close()
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lock)
        self._lock = -1

    def _holding(self, key: bytes) -> Segment | None:
        return next((one for one in self._segments if any(entry.key == key for entry in one.entries)), None)

    def _first(self) -> Segment | None:
        """The first file with anything left in it, in front; what is before that is gone."""
        while self._segments:
            segment = self._segments[0]
            if segment.entries and segment.entries[0].key:
                return segment
            if segment.entries:
                self._pop(segment)
            else:
                self._remove(segment)
        return None

    def _pop(self, segment: Segment) -> None:
        entry = segment.entries.popleft()
        self.points -= entry.points
        self._cursor.mark(segment.number, entry.offset + entry.size)
        if not segment.entries:
            self._remove(segment)

    def _remove(self, segment: Segment) -> None:
        self._segments.remove(segment)
        self._writable = self._writable and bool(self._segments)
        segment.close()
        self._undeleted = [one for one in (*self._undeleted, segment) if not one.deleted()]

    def _write(self, data: bytes) -> Segment:
        """Behind what the last file holds, which is never more than all may; its size is for the caller to change."""
        if not self._writable or self._segments[-1].size + len(data) > self._max_bytes \
                or self._segments[-1].size >= self._segment_bytes:
            self._begin()
        self._segments[-1].write(data)
        return self._segments[-1]

    def _begin(self) -> None:
        number = self._next_number
        path = self._directory / f"{number:016d}.chunks"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if self._writable:
            self._full.append(self._segments[-1])
        self._next_number += 1
        self._segments.append(Segment(number, path, fd))
        self._named.add(self._directory)
        self._writable = True

    def _bear(self, error: OSError, path: Path) -> None:
        """Raises it until nothing could be read for so long that what stands there shall hold up nothing any more."""
        if not self._patience.over(_UNREADABLE_S):
            raise OSError(error.errno, error.strerror, str(path)) from None

    def _recover(self) -> None:
        whole = True
        try:
            number, offset = self._cursor.read()
        except OSError as error:
            self._bear(error, self._cursor.path)
            logger.warning("%s: %s: of the oldest file some may be sent twice", self._cursor.path, error.strerror)
            number, offset, whole = 0, 0, False
        self._next_number = number + 1
        for path in sorted(self._directory.glob("*.chunks")):
            if not path.stem.isdigit():
                continue
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            segment = Segment(int(path.stem), path, fd, os.fstat(fd).st_size)
            self._segments.append(segment)
            self._next_number = max(self._next_number, segment.number + 1)
            at = 0 if segment.number > number else offset if segment.number == number else segment.size
            try:
                for entry in entries(path, fd, segment.size, at):
                    segment.entries.append(entry)
                    self.points += entry.points
                    at = entry.offset + entry.size
            except OSError as error:
                self._bear(error, path)
                logger.warning("%s: %s at byte %d: what the last %d bytes held is lost", path, error.strerror, at,
                               segment.size - at)
                whole = False
        if whole:
            self._patience.well()
        if number == 0:
            self._cursor.mark(0, 0)
