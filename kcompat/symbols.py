"""Where in an ELF file a function begins that others may call: what a uprobe is set on."""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

from kcompat.elf import Elf
from kcompat.errors import BadInput

_DYNAMIC_SYMBOLS, _ALL_SYMBOLS = 11, 2
_FUNCTION = 2
_LOAD = 1


def function_offset(elf: Elf, name: str) -> int | None:
    """The place in the file of the function's first instruction; None when the file defines no such function.

    Both tables of symbols are asked: a stripped program has only the dynamic one. Raises BadInput when the file is
    not what its headers say.
    """
    for kind in (_DYNAMIC_SYMBOLS, _ALL_SYMBOLS):
        if found := _symbols(elf, kind, {name.encode()}):
            return _in_file(elf, found[name][0])
    return None


class Function(NamedTuple):
    """Where its first instruction lies in the file, and how many bytes it has; 0: not told."""

    at: int
    size: int


def exported_functions(elf: Elf, names: Collection[str]) -> dict[str, Function]:
    """Those of these functions that the file lets others call. Raises BadInput."""
    found = _symbols(elf, _DYNAMIC_SYMBOLS, {name.encode() for name in names})
    return {name: Function(_in_file(elf, address), size) for name, (address, size) in found.items()}


def _symbols(elf: Elf, kind: int, wanted: Collection[bytes]) -> dict[str, tuple[int, int]]:
    """The values and sizes of those symbols that are functions defined here. No file has two tables of a kind (elf(5)).
    """
    table = next((section for section in elf.sections if section.kind == kind), None)
    if table is None:
        return {}
    if table.link >= len(elf.sections):
        raise BadInput(elf.path, "a table of symbols without names")
    names, symbols = elf.read(elf.sections[table.link]), elf.read(table)
    # struct Elf64_Sym: name, info, other, section, value, size. Elf32_Sym has the middle last.
    entry = struct.Struct(elf.byte_order + ("IBBHQQ" if elf.bits == 64 else "IIIBBH"))
    end = len(symbols) // entry.size * entry.size
    found: dict[str, tuple[int, int]] = {}
    # Not to where it ends: names may end nowhere.
    room = max(map(len, wanted), default=0) + 1
    for values in entry.iter_unpack(symbols[:end]):
        at, info, _, section, value, size = values if elf.bits == 64 else (
            values[0], values[3], values[4], values[5], values[1], values[2])
        if info & 15 == _FUNCTION and section:
            name, ended, _ = names[at:at + room].partition(b"\0")
            if ended and name in wanted:
                found.setdefault(name.decode(), (int(value), int(size)))
    return found


def _in_file(elf: Elf, address: int) -> int:
    """Where the byte that will be at this address lies in the file, by its segments."""
    wide = elf.bits == 64
    table, = struct.unpack_from(elf.byte_order + ("Q" if wide else "I"), elf.head, 32 if wide else 28)
    size, count = struct.unpack_from(elf.byte_order + "HH", elf.head, 54 if wide else 42)
    # struct Elf64_Phdr: type, flags, offset, address, physical address, size in the file. Elf32_Phdr: flags are later.
    header = struct.Struct(elf.byte_order + ("IIQQQQ16x" if wide else "IIIII12x"))
    if size != header.size or table + size * count > len(elf.data):
        raise BadInput(elf.path, "its segments are truncated or corrupt")
    for values in header.iter_unpack(elf.data[table:table + size * count]):
        kind, offset, start, length = (values[0], values[2], values[3], values[5]) if wide else (
            values[0], values[1], values[2], values[4])
        if kind == _LOAD and start <= address < start + length:
            at = int(address - start + offset)
            if at >= len(elf.data):
                raise BadInput(elf.path, f"the function at {address:#x} lies past its end")
            return at
    raise BadInput(elf.path, f"the function at {address:#x} is in no segment")
