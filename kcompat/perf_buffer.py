"""What programs hand over piece by piece: a ring of memory per processor that the kernel writes and we read."""

from __future__ import annotations

import mmap
import os
import select
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kcompat.maps import Map
from kcompat.sysbpf import perf_event_open

_PERF_TYPE_SOFTWARE, _BPF_OUTPUT = 1, 10
_SAMPLE_RAW = 1 << 10
_WATERMARK = 1 << 14
_ATTR_SIZE = 112
_RECORD_LOST, _RECORD_SAMPLE = 2, 9
# struct perf_event_mmap_page: how far the kernel has written, and we have read.
_HEAD, _TAIL = 1024, 1032
_U64 = struct.Struct("=Q")
# struct perf_event_header, and of a sample the size of what follows.
_HEADER = struct.Struct("=IHHI")
_LOST = struct.Struct("=8xQQ")


class PerfBuffer:
    """Reads a map of the perf event array type. What found a ring full is counted in `lost`.

    The kernel tells of it with the next that finds room; `filled` is at once how often there was no more of that.
    """

    def __init__(self, table: Map, size: int) -> None:
        """`size`, a power of two, is what each processor's ring holds, in bytes. Raises OSError."""
        self.lost = self.filled = 0
        self._size = size
        self._rings: list[tuple[int, mmap.mmap]] = []
        self._poll = select.epoll()
        try:
            for cpu in online_cpus():
                self._open(table, cpu)
        except BaseException:
            self.close()
            raise

    def _open(self, table: Map, cpu: int) -> None:
        # struct perf_event_attr: type, size, config, sample_period, sample_type, read_format, flags, wakeup_watermark.
        attr = struct.pack("=IIQQQQQI", _PERF_TYPE_SOFTWARE, _ATTR_SIZE, _BPF_OUTPUT, 1, _SAMPLE_RAW, 0, _WATERMARK,
                           self._size // 4).ljust(_ATTR_SIZE, b"\0")
        fd = perf_event_open(attr, -1, cpu)
        try:
            ring = mmap.mmap(fd, mmap.PAGESIZE + self._size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except BaseException:
            os.close(fd)
            raise
        self._rings.append((fd, ring))
        self._poll.register(fd, select.EPOLLIN)
        table.set(struct.pack("=I", cpu), struct.pack("=I", fd))

    def wait(self, timeout_s: float) -> None:
        """Until a ring is a quarter full, but no longer than this."""
        self._poll.poll(timeout_s)

    def read(self) -> Iterator[bytes]:
        """What is there, of each processor in the order it was handed over; may end in a few bytes of padding."""
        for _, ring in self._rings:
            head, tail = _U64.unpack_from(ring, _HEAD)[0], _U64.unpack_from(ring, _TAIL)[0]
            if head == tail:
                continue
            begin, end = mmap.PAGESIZE + tail % self._size, mmap.PAGESIZE + head % self._size
            data = ring[begin:end] if begin < end else ring[begin:] + ring[mmap.PAGESIZE:end]
            # It is copied: from here on the kernel may write there again.
            _U64.pack_into(ring, _TAIL, head)
            at = size = 0
            while at < len(data):
                kind, _, size, length = _HEADER.unpack_from(data, at)
                if kind == _RECORD_SAMPLE:
                    yield data[at + _HEADER.size:at + _HEADER.size + length]
                elif kind == _RECORD_LOST:
                    self.lost += _LOST.unpack_from(data, at)[1]
                at += size
            self.filled += len(data) + size > self._size

    def close(self) -> None:
        while self._rings:
            fd, ring = self._rings.pop()
            with suppress(BufferError):
                ring.close()
            os.close(fd)
        self._poll.close()


def online_cpus() -> list[int]:
    """The processors at work now: one that comes later has no ring, and what its programs hand over is lost."""
    ranges = Path("/sys/devices/system/cpu/online").read_text().strip().split(",")
    return [cpu for first, _, last in (one.partition("-") for one in ranges)
            for cpu in range(int(first), int(last or first) + 1)]
