"""Where the units of a DWARF section begin and end, read from their headers alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kcompat.dwarf_abbreviations import Corrupt, Shape, number
from kcompat.dwarf_sections import Content

LONGEST_HEADER = 40
# Far above any kernel's; what a file made to exhaust memory would need.
_MAX_UNITS, _MAX_UNIT = 1 << 19, 1 << 28
_DW_UT_TYPE, _DW_UT_SPLIT_TYPE = 2, 6
_DW_UT_SKELETON, _DW_UT_SPLIT_COMPILE = 4, 5


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """Where one unit lies in its section, and what its header says; `entries` is the offset of its first entry.

    `signature` and `type_at` (from the unit's start) are those of a type unit.
    """

    content: Content
    start: int
    end: int
    entries: int
    shape: Shape
    abbreviations: int
    signature: int | None = None
    type_at: int = 0
    may_be_skeleton: bool = False


def headers(content: Content, byte_order: str, types: bool) -> Iterator[Header]:
    """The header of every unit, from one to the next by its length."""
    start = count = 0
    while start < content.size:
        count += 1
        data = content.read(start, LONGEST_HEADER)
        if len(data) < 4:
            raise Corrupt(f"a unit header at {start} is cut off")
        length, = struct.unpack_from(byte_order + "I", data)
        wide = length == 0xFFFFFFFF
        at, word = (12, 8) if wide else (4, 4)
        length = number(data, 4, 8, byte_order) if wide else length
        end = start + at + length
        if end > content.size or (length >= 0xFFFFFFF0 and not wide):
            raise Corrupt(f"the unit at {start} ends past the {content.size} bytes of its section")
        if count > _MAX_UNITS or end - start > _MAX_UNIT:
            raise Corrupt(f"unit {count} of {end - start} bytes is not a kernel's")
        yield _header(content, data, start, end, at, word, byte_order, types)
        start = end


def _header(content: Content, data: bytes, start: int, end: int, at: int, word: int, byte_order: str,
            types: bool) -> Header:
    version = number(data, at, 2, byte_order)
    at += 2
    if not 2 <= version <= 5:
        raise Corrupt(f"the unit at {start} is DWARF {version}; 2 to 5 are known")
    kind = 0
    if version == 5:
        kind, address, table = data[at], data[at + 1], at + 2
        at += 2 + word
    else:
        kind, address, table = _DW_UT_TYPE if types else 0, data[at + word], at
        at += word + 1
    signature, type_at = None, 0
    if kind in (_DW_UT_TYPE, _DW_UT_SPLIT_TYPE):
        signature, type_at = number(data, at, 8, byte_order), number(data, at + 8, word, byte_order)
        at += 8 + word
    elif kind in (_DW_UT_SKELETON, _DW_UT_SPLIT_COMPILE):
        at += 8
    if start + at >= end or address not in (4, 8):
        raise Corrupt(f"the header of the unit at {start} is cut off or not one")
    return Header(content, start, end, start + at, Shape(version, word, address), start + table, signature, type_at,
                  version < 5 or kind == _DW_UT_SKELETON)
