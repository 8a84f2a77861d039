"""What programs hand over piece by piece: a ring of memory per processor that the kernel writes and we read."""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

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
# How often is asked which processors there are.
_LOOK_S = 1.0


class PerfBuffer:
    """Reads a map of the perf event array type. What found a ring full is counted in `lost`.

    The kernel tells of it with the next that finds room; `filled` is at once how often there was no more of that.
    Processors may come and go: one has its ring within a second. What its programs hand over before has nowhere to go,
    which bpf_perf_event_output() tells them; `changed` is how often that may have been.
    """

    def __init__(self, table: Map, size: int) -> None:
        """`size`, a power of two, is what each processor's ring holds, in bytes. Raises OSError."""
        self.lost = self.filled = self.changed = 0
        self._table, self._size = table, size
        self._rings: dict[int, tuple[int, mmap.mmap]] = {}
        self._poll = select.epoll()
        self._online, self._asleep_s = online(), asleep_s()
        self._look_at_s = time.monotonic() + _LOOK_S
        try:
            for cpu in cpus_of(self._online):
                self._open(cpu)
        except BaseException:
            self.close()
            raise

    def _open(self, cpu: int) -> None:
        # struct perf_event_attr: type, size, config, sample_period, sample_type, read_format, flags, wakeup_watermark.
        attr = struct.pack("=IIQQQQQI", _PERF_TYPE_SOFTWARE, _ATTR_SIZE, _BPF_OUTPUT, 1, _SAMPLE_RAW, 0, _WATERMARK,
                           self._size // 4).ljust(_ATTR_SIZE, b"\0")
        fd = perf_event_open(attr, -1, cpu)
        try:
            ring = mmap.mmap(fd, mmap.PAGESIZE + self._size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except BaseException:
            os.close(fd)
            raise
        self._rings[cpu] = fd, ring
        self._poll.register(fd, select.EPOLLIN)
        self._table.set(struct.pack("=I", cpu), struct.pack("=I", fd))

    def _shut(self, cpu: int) -> None:
        fd, ring = self._rings.pop(cpu)
        self._table.delete(struct.pack("=I", cpu))
        with suppress(BufferError):
            ring.close()
        os.close(fd)

    def wait(self, timeout_s: float) -> None:
        """Until a ring is a quarter full, but no longer than this."""
        self._poll.poll(timeout_s)

    def read(self) -> Iterator[bytes]:
        """What is there, of each processor in the order it was handed over; may end in a few bytes of padding."""
        yield from self._read(self._rings)
        if time.monotonic() >= self._look_at_s:
            yield from self._follow()

    def _follow(self) -> Iterator[bytes]:
        """The event of a processor that was switched off is no use when it is on again: its ring goes with it.

        A machine that sleeps switches off all but one.
        """
        self._look_at_s = time.monotonic() + _LOOK_S
        now, slept_s = online(), asleep_s() - self._asleep_s
        if now == self._online and slept_s < _LOOK_S:
            return
        self._online, here = now, set(cpus_of(now))
        self._asleep_s += slept_s
        for cpu in tuple(self._rings) if slept_s >= _LOOK_S else self._rings.keys() - here:
            yield from self._read((cpu,))
            self._shut(cpu)
        for cpu in here - self._rings.keys():
            # Off again already, or no memory left: another look finds it.
            try:
                self._open(cpu)
            except OSError:
                self._online = ""
        self.changed += 1

    def _read(self, cpus: Iterable[int]) -> Iterator[bytes]:
        for cpu in cpus:
            ring = self._rings[cpu][1]
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
        for cpu in tuple(self._rings):
            self._shut(cpu)
        self._poll.close()


def online() -> str:
    """The processors at work now, as the kernel tells of them: `0-3,6`."""
    with open("/sys/devices/system/cpu/online") as file:  # noqa: PTH123 - a hot little read
        return file.read().strip()


def asleep_s() -> float:
    """How long the machine has slept since it was booted: only one of these clocks goes on then (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def cpus_of(ranges: str) -> list[int]:
    """The numbers of such a list."""
    return [cpu for first, _, last in (one.partition("-") for one in ranges.split(","))
            for cpu in range(int(first), int(last or first) + 1)]
