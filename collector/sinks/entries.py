"""How chunks stand in a file: one entry after another, each with its checksum, so that half a one is never sent."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from collector.sinks.chunk import Chunk

logger = logging.getLogger(__name__)

_MAGIC = b"kcs1"
# Magic, CRC-32 of all that follows it, bytes of payload, points, time, key, bytes of route.
_HEAD = struct.Struct("<4sIIIQ8sH")
_SUMMED_FROM = 8


class Entry(NamedTuple):
    """Where a chunk stands, and what is told without reading it."""

    offset: int
    size: int
    points: int
    time_ns: int
    key: bytes


def written(chunk: Chunk) -> bytes:
    route = chunk.route.encode()
    head = _HEAD.pack(_MAGIC, 0, len(chunk.payload), chunk.points, chunk.time_ns, chunk.key, len(route))
    data = bytearray(head + route + chunk.payload)
    struct.pack_into("<I", data, 4, zlib.crc32(memoryview(data)[_SUMMED_FROM:]))
    return bytes(data)


def read(data: bytes) -> Chunk | None:
    """None: damaged."""
    if len(data) < _HEAD.size or zlib.crc32(memoryview(data)[_SUMMED_FROM:]) != struct.unpack_from("<I", data, 4)[0]:
        return None
    _, _, _, points, time_ns, key, routed = _HEAD.unpack_from(data)
    begin = _HEAD.size + routed
    return Chunk(data[_HEAD.size:begin].decode(), points, data[begin:], key, time_ns)


def entries(path: Path, fd: int, end: int, offset: int) -> Iterator[Entry]:
    """By their heads alone; whether what they hold is sound is seen when it is read."""
    while offset < end:
        head = os.pread(fd, _HEAD.size, offset)
        if len(head) < _HEAD.size:
            break
        magic, _, length, points, time_ns, key, routed = _HEAD.unpack(head)
        size = _HEAD.size + routed + length
        if magic != _MAGIC:
            logger.warning("%s: damaged at byte %d: what the last %d bytes held is lost", path, offset, end - offset)
            return
        if offset + size > end:
            break
        yield Entry(offset, size, points, time_ns, key)
        offset += size
    if offset < end:
        logger.info("%s: the last write was cut short and is left out: %d bytes", path, end - offset)
