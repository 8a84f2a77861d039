"""The DWARF sections of one ELF file: read in pieces, inflated where they must be, relocated where they are read."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import compress
from typing import BinaryIO, cast

from kcompat.elf import Elf, Section
from kcompat.errors import BadInput

ET_REL = 1
_SHT_RELA = 4
_SHF_COMPRESSED = 1 << 11
# A build server gives a worker 2 GiB; the largest .debug_info of a distribution's kernel is a fifth of that.
_MAX_INFLATED = 1 << 30
_MAX_WHOLE = 1 << 28
_CHUNK = 1 << 20
_ZSTD_WINDOW = 1 << 27
_CHUNK_ENTRIES = 1 << 15

# e_machine -> relocation type -> bytes it fills with symbol + addend. Strings and units are referred to by these only.
_ABSOLUTE = {
    21: {1: 4, 38: 8}, 22: {4: 4, 22: 8}, 62: {1: 8, 10: 4, 11: 4}, 183: {257: 8, 258: 4}, 243: {1: 4, 2: 8},
    258: {1: 4, 2: 8},
}


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """One section's bytes; `read(at, size)` copies out that piece, shorter at the end, as it stands in the file."""

    size: int
    read: Callable[[int, int], bytes]
    relocations: Relocations | None = None

    def relocated(self, at: int, size: int) -> bytes:
        piece = self.read(at, size)
        return self.relocations.applied(piece, at) if self.relocations else piece


class Sections:
    """The sections of an open ELF file. Nothing is mapped: a page read here never counts as this process's memory."""

    def __init__(self, elf: Elf, descriptor: int) -> None:
        self.elf, self._descriptor = elf, descriptor
        # struct Elf64_Sym has (section, value), Elf32_Sym (value, section).
        self._symbol = struct.Struct(elf.byte_order + ("6xHQ8x" if elf.bits == 64 else "4xI6xH"))
        self._value = 1 if elf.bits == 64 else 0

    def all(self, name: str) -> list[Content]:
        """An object file has each type unit in a section of its own (a COMDAT group), all of one name."""
        return [self._content(i, s) for i, s in enumerate(self.elf.sections) if s.name in _spellings(name) and s.size]

    def whole(self, name: str) -> bytes:
        content = next(iter(self.all(name)), None)
        if content and content.size > _MAX_WHOLE:
            raise BadInput(self.elf.path, f"{name} of {content.size} bytes is not a kernel's")
        return content.relocated(0, content.size) if content else b""

    def index(self, name: str) -> int | None:
        return next((i for i, s in enumerate(self.elf.sections) if s.name in _spellings(name)), None)

    def symbols_of(self, section: int) -> dict[int, int]:
        """number -> value of the symbols that stand in that section."""
        table, shape = self.elf.find(".symtab"), self._symbol
        found: dict[int, int] = {}
        if table is None:
            return found
        for at in range(0, table.size, _CHUNK_ENTRIES * shape.size):
            data = self._read(table, at, _CHUNK_ENTRIES * shape.size)
            rows = shape.iter_unpack(data[:len(data) // shape.size * shape.size])
            found |= {at // shape.size + i: row[self._value] for i, row in enumerate(rows)
                      if row[1 - self._value] == section}
        return found

    def symbol_value(self, symbol: int) -> int:
        table = self.elf.find(".symtab")
        data = self._read(table, symbol * self._symbol.size, self._symbol.size) if table else b""
        if len(data) < self._symbol.size:
            raise BadInput(self.elf.path, f"a relocation refers to symbol {symbol}, which is not there")
        value: int = self._symbol.unpack(data)[self._value]
        return value

    def _content(self, index: int, section: Section) -> Content:
        relocations = self._relocations(index)
        if section.flags & _SHF_COMPRESSED or section.name.startswith(".z"):
            data = self._inflated(section)
            return Content(len(data), lambda at, size: bytes(data[at:at + size]), relocations)
        return Content(section.size, lambda at, size: self._read(section, at, size), relocations)

    def _read(self, section: Section, at: int, size: int) -> bytes:
        return os.pread(self._descriptor, max(0, min(size, section.size - at)), section.offset + at)

    def _relocations(self, index: int) -> Relocations | None:
        """Only an object file's are to be applied: a kernel linked with --emit-relocs keeps those already done.

        Only RELA: REL has the addend in place, and a section's symbol, whose value is 0, to add.
        """
        if self.elf.kind != ET_REL:
            return None
        section = next((s for s in self.elf.sections if s.kind == _SHT_RELA and s.info == index and s.size), None)
        if section is None:
            return None
        if self.elf.machine not in _ABSOLUTE:
            raise BadInput(self.elf.path, f"relocations of ELF machine {self.elf.machine} are not known")
        content = Content(section.size, lambda at, size: self._read(section, at, size))
        return Relocations(content, self)

    def _inflated(self, section: Section) -> bytearray:
        if section.flags & _SHF_COMPRESSED:
            shape = struct.Struct(self.elf.byte_order + ("I4xQ8x" if self.elf.bits == 64 else "II4x"))
            kind, size = shape.unpack(self._read(section, 0, shape.size))
            at = shape.size
        else:
            kind, (size,), at = 1, struct.unpack(">4xQ", self._read(section, 0, 12)), 12
        if kind not in _INFLATERS:
            raise BadInput(self.elf.path, f"{section.name} is compressed with method {kind}, neither zlib nor zstd: "
                                          "unpack it with objcopy --decompress-debug-sections")
        if size > _MAX_INFLATED:
            raise BadInput(self.elf.path, f"{section.name} would take {size} bytes decompressed")
        data = bytearray()
        for piece in _INFLATERS[kind](self._read(section, n, _CHUNK) for n in range(at, section.size, _CHUNK)):
            data += piece
            if len(data) > size:
                break
        if len(data) != size:
            raise BadInput(self.elf.path, f"{section.name} does not decompress to its {size} bytes")
        return data


def _zlib(packed: Iterator[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    for piece in packed:
        while piece and not inflater.eof:
            yield inflater.decompress(piece, _CHUNK)
            piece = inflater.unconsumed_tail
    # The end of a match that did not fit, no more.
    yield inflater.flush()


def _zstd(packed: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    class Source:
        def read(self, _size: int = -1) -> bytes:
            return next(packed, b"")

    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(cast(BinaryIO, Source()))
    yield from iter(lambda: reader.read(_CHUNK), b"")


# ELFCOMPRESS_ZLIB and ELFCOMPRESS_ZSTD of elf(5): pieces that unpack to no more than _CHUNK bytes each.
_INFLATERS: dict[int, Callable[[Iterator[bytes]], Iterator[bytes]]] = {1: _zlib, 2: _zstd}


def _spellings(name: str) -> tuple[str, str]:
    """GNU tools named compressed sections .zdebug_* before ELF had a flag for it."""
    return name, name.replace(".", ".z", 1)


class Relocations:
    """The RELA entries of one section, in any order, read in chunks."""

    def __init__(self, content: Content, sections: Sections) -> None:
        self._content, self._sections = content, sections
        elf = sections.elf
        self._word, self._shift = ("Q", 32) if elf.bits == 64 else ("I", 8)
        self._swapped = (elf.byte_order == "<") != (sys.byteorder == "little")
        self._order, self._widths = elf.byte_order, _ABSOLUTE[elf.machine]
        self._base = cache(sections.symbol_value)
        self._spans: list[tuple[int, int]] = []

    def places(self, section: int, values: set[int]) -> Iterator[int]:
        """The offsets of the entries that refer to one of these bytes of `section`."""
        based = self._sections.symbols_of(section)
        addends = {value - base for value in values for base in set(based.values()) if value >= base}
        for number in range(self._count()):
            words = self._chunk(number)
            for row in compress(range(2, len(words), 3), map(addends.__contains__, words[2::3])):
                symbol = words[row - 1] >> self._shift
                if symbol in based and based[symbol] + words[row] in values:
                    yield words[row - 2]

    def applied(self, piece: bytes, at: int) -> bytes:
        """`piece`, which stands at `at`, with every relocation inside it."""
        patched, end = bytearray(piece), at + len(piece)
        mask = (1 << self._shift) - 1
        for number, (first, last) in enumerate(self._bounds()):
            if first >= end or last < at:
                continue
            words = self._chunk(number)
            for offset, info, addend in zip(words[::3], words[1::3], words[2::3], strict=True):
                width = self._widths.get(info & mask)
                if width is not None and at <= offset <= end - width:
                    value = self._base(info >> self._shift) + addend
                    patched[offset - at:offset - at + width] = (value % (1 << 8 * width)).to_bytes(
                        width, "little" if self._order == "<" else "big")
        return bytes(patched)

    def _bounds(self) -> list[tuple[int, int]]:
        """The smallest and the greatest offset of each chunk: nearly always rising, which is not relied on."""
        if not self._spans:
            offsets = (self._chunk(number)[::3] for number in range(self._count()))
            self._spans = [(min(chunk), max(chunk)) for chunk in offsets]
        return self._spans

    def _count(self) -> int:
        entry = 3 * array(self._word).itemsize
        return -(-(self._content.size // entry) // _CHUNK_ENTRIES)

    def _chunk(self, number: int) -> array[int]:
        words = array(self._word)
        entry = 3 * words.itemsize
        data = self._content.read(number * _CHUNK_ENTRIES * entry, _CHUNK_ENTRIES * entry)
        words.frombytes(data[:len(data) // entry * entry])
        if self._swapped:
            words.byteswap()
        return words
