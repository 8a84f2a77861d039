"""The little of ELF the rest needs: open a file without reading it all, find its sections, know its machine."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kcompat.errors import BadInput
from kcompat.foreign_file import ForeignFile
from kcompat.regular import faults_of, open_regular

MAGIC = b"\x7fELF"
_SHT_NOBITS = 8
_SHN_XINDEX = 0xFFFF
# Far more than any file has of them, and than their names are long: who makes a file says what is in it.
_MAX_SECTIONS = 1 << 17
_LONGEST_NAME = 256

Data = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class Section:
    """One section header; `size` is 0 for a section that takes no room in the file, `link` and `info` as in elf(5)."""

    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int

    @property
    def is_empty_here(self) -> bool:
        """Whether it has bytes in memory and none in the file."""
        return self.kind == _SHT_NOBITS


class Elf:
    """The headers of one ELF file, 32 or 64 bits, either byte order; every section is known to lie in the file."""

    def __init__(self, data: Data | ForeignFile, path: Path) -> None:
        """Raises BadInput when the headers are not those of a whole ELF file."""
        self.data, self.path = data, path
        self.head = head = data[:64]
        """The ELF header, and what follows it where that is shorter."""
        if head[:4] != MAGIC:
            raise BadInput(path, "not an ELF file")
        if len(head) < 64 or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise BadInput(path, "its ELF header is truncated or corrupt")
        self.bits = 32 * head[4]
        self.byte_order = "<" if head[5] == 1 else ">"
        self.kind, self.machine = struct.unpack_from(self.byte_order + "HH", head, 16)
        self.sections = tuple(self._read_sections())

    def find(self, name: str) -> Section | None:
        return next((s for s in self.sections if s.name == name), None)

    def read(self, section: Section) -> bytes:
        return self.data[section.offset:section.offset + section.size]

    def _read_sections(self) -> Iterator[Section]:
        if self.bits == 64:
            table, = struct.unpack_from(self.byte_order + "Q", self.head, 40)
            size, count, names_index = struct.unpack_from(self.byte_order + "HHH", self.head, 58)
            header = struct.Struct(self.byte_order + "IIQQQQII16x")
        else:
            table, = struct.unpack_from(self.byte_order + "I", self.head, 32)
            size, count, names_index = struct.unpack_from(self.byte_order + "HHH", self.head, 46)
            header = struct.Struct(self.byte_order + "IIIIIIII8x")
        if table == 0:
            return
        if size != header.size or table + size > len(self.data):
            raise BadInput(self.path, "its ELF section headers are truncated or corrupt")
        # A file of more than 65279 sections keeps their number and the index of the names in section 0 (elf(5)).
        first = header.unpack(self.data[table:table + size])
        count = count or first[5]
        names_index = first[6] if names_index == _SHN_XINDEX else names_index
        if table + count * size > len(self.data) or names_index >= count or count > _MAX_SECTIONS:
            raise BadInput(self.path, "its ELF section headers are truncated or corrupt")
        headers = list(header.iter_unpack(self.data[table:table + count * size]))
        names_offset, names_size = headers[names_index][4:6]
        names = self.data[names_offset:names_offset + names_size]
        for name_offset, kind, flags, _, offset, length, link, info in headers:
            if kind == _SHT_NOBITS:
                length = 0
            elif offset + length > len(self.data) and kind:
                raise BadInput(self.path, f"truncated: a section of {length} bytes at {offset} ends past the "
                                          f"file's {len(self.data)} bytes")
            name = names[name_offset:name_offset + _LONGEST_NAME].partition(b"\0")[0]
            yield Section(name.decode("latin-1"), kind, flags, offset, length, link, info)


def is_elf(path: Path) -> bool:
    """Whether the file begins as one; False too for what cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def open_file(path: Path) -> Data:
    """The file's bytes; an ELF file, which may be a gigabyte, only as a mapping.

    Raises Missing when it is not there or not readable, BadInput when it is no regular file with bytes in it.
    """
    with faults_of(path), open_regular(path) as file:
        if file.read(len(MAGIC)) == MAGIC:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        file.seek(0)
        data = file.readall()
    if not data:
        raise BadInput(path, "empty")
    return data
