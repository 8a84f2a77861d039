"""Unpacks gzip, xz, lzma, bzip2, zstd and lz4, told by their first bytes, forward only and never past a bound."""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, cast

from kcompat.errors import BadInput

MIB = 1 << 20
# What a file may grow to: real packages and images grow tenfold, bombs a thousandfold and more.
_RATIO, _FLOOR, _CEILING = 200, 64 * MIB, 48 << 30
_CHUNK = MIB
# Kernels are packed with zstd -22 --ultra, whose window is this large.
_ZSTD_WINDOW = 128 * MIB
_LZ4_LEGACY_BLOCK = 8 * MIB


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Gzip:
    """One gzip member. The module's GzipFile takes what follows it, and a kernel's image goes on, for damage."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._inner, self._left = source, zlib.decompressobj(wbits=31), b""

    def read(self, size: int = -1, /) -> bytes:
        while not self._inner.eof:
            packed = self._left or self._source.read(_CHUNK)
            if not packed:
                raise EOFError("it ends too early")
            out = self._inner.decompress(packed, size)
            self._left = self._inner.unconsumed_tail
            if out:
                return out
        return b""


class _Lz4Legacy:
    """The form Linux packs its images in: blocks of 8 MiB, each after its packed size, and no end mark."""

    def __init__(self, source: BinaryIO) -> None:
        source.read(4)
        self._blocks, self._ready = _lz4_blocks(source), b""

    def read(self, size: int = -1, /) -> bytes:
        self._ready = self._ready or next(self._blocks, b"")
        out, self._ready = self._ready[:size], self._ready[size:]
        return out


def _lz4_blocks(source: BinaryIO) -> Iterator[bytes]:
    import lz4.block  # type: ignore[import-untyped]

    while len(head := source.read(4)) == 4:
        size, = struct.unpack("<I", head)
        if not 0 < size <= 2 * _LZ4_LEGACY_BLOCK:
            return
        yield lz4.block.decompress(source.read(size), uncompressed_size=_LZ4_LEGACY_BLOCK)


def _zstd(source: BinaryIO) -> Readable:
    import zstandard

    # One frame, as every packer but pzstd writes: what follows a kernel in its image is not another.
    return cast(Readable, zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(source))


def _lz4(source: BinaryIO) -> Readable:
    import lz4.frame  # type: ignore[import-untyped]

    return cast(Readable, lz4.frame.LZ4FrameFile(source))


_UNPACKERS: dict[bytes, tuple[str, Callable[[BinaryIO], Readable]]] = {
    b"\x1f\x8b\x08": ("gzip", _Gzip),
    b"\xfd7zXZ\0": ("xz", lzma.LZMAFile),
    b"]\0\0": ("lzma", lzma.LZMAFile),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
    b"\x02\x21\x4c\x18": ("lz4", _Lz4Legacy),
    b"\x04\x22\x4d\x18": ("lz4", _lz4),
}
MAGICS = tuple(_UNPACKERS)


class Bounded:
    """Reads `source` and counts; past `limit` bytes, or where it is damaged, that is BadInput of `where`."""

    def __init__(self, source: Readable, where: str, limit: int, kind: str = "") -> None:
        self._source, self._where, self._limit, self._kind = source, where, limit, kind
        self._count = 0

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return b"".join(iter(lambda: self.read(_CHUNK), b""))
        try:
            data = self._source.read(size)
        except MemoryError:
            raise
        # Each unpacker has errors of its own, lz4's and zstandard's derive from Exception alone.
        except Exception as error:
            raise BadInput(self._where, f"damaged {self._kind} data: {error}") from error
        self._count += len(data)
        if self._count > self._limit:
            raise BadInput(self._where, f"unpacks to more than {self._limit >> 20} MiB: a decompression bomb?")
        return data


def limit_of(size: int) -> int:
    """How many bytes a file of `size` bytes may unpack to."""
    return min(_FLOOR + _RATIO * size, _CEILING)


def is_packed(head: bytes) -> bool:
    return head.startswith(MAGICS)


def unpacked(source: BinaryIO, where: str, limit: int) -> Bounded:
    """What the stream at `source` unpacks to. Raises BadInput when it is packed in no way known here."""
    start = source.tell()
    head = source.read(max(map(len, MAGICS)))
    source.seek(start)
    for magic, (kind, unpacker) in _UNPACKERS.items():
        if head.startswith(magic):
            return Bounded(unpacker(source), where, limit, kind)
    if head.startswith(b"\x89LZO"):
        raise BadInput(where, "packed with LZO, which is not supported")
    raise BadInput(where, f"packed in an unknown way: it starts with {head.hex()}")


class Part(io.RawIOBase):
    """`size` bytes of a seekable file from where it stands, as a file of their own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._start, self._size, self._at = file, file.tell(), size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data
