"""What a DWARF entry looks like, from .debug_abbrev: enough to step over millions of entries without reading them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO

from elftools.common.utils import struct_parse
from elftools.dwarf.abbrevtable import AbbrevDecl, AbbrevTable
from elftools.dwarf.structs import DWARFStructs

DW_TAG_CLASS, DW_TAG_STRUCTURE, DW_TAG_UNION = 0x02, 0x13, 0x17
AGGREGATES = frozenset((DW_TAG_CLASS, DW_TAG_STRUCTURE, DW_TAG_UNION))
DW_AT_SIBLING, DW_AT_NAME, DW_AT_DECLARATION, DW_AT_STR_OFFSETS_BASE = 0x01, 0x03, 0x3C, 0x72
STRING, STRP, LINE_STRP, STRX = 0x08, 0x0E, 0x1F, 0x1A
STRX_WIDTHS = {0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4}
REFERENCE_WIDTHS = {0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8}
_IMPLICIT_CONST = 0x21

# Bytes a form takes; below 0 it is one of the shapes after, whose bytes tell.
_LEB, _CSTRING, _BLOCK = -1, -2, -3
_BLOCK1, _BLOCK2, _BLOCK4 = -4, -5, -6
_COUNTED = {_BLOCK1: 1, _BLOCK2: 2, _BLOCK4: 4}
_SIZES = {
    0x03: _BLOCK2, 0x04: _BLOCK4, 0x05: 2, 0x06: 4, 0x07: 8, STRING: _CSTRING, 0x09: _BLOCK, 0x0A: _BLOCK1, 0x0B: 1,
    0x0C: 1, 0x0D: _LEB, 0x0F: _LEB, 0x15: _LEB, 0x18: _BLOCK, 0x19: 0, STRX: _LEB, 0x1B: _LEB, 0x1C: 4, 0x1E: 16,
    0x20: 8, _IMPLICIT_CONST: 0, 0x22: _LEB, 0x23: _LEB, 0x24: 8, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4,
    0x1F01: _LEB, 0x1F02: _LEB,
} | STRX_WIDTHS | REFERENCE_WIDTHS
_OFFSETS = frozenset((STRP, 0x10, 0x17, 0x1D, LINE_STRP, 0x1F20, 0x1F21))  # as wide as an offset of the unit
_ADDRESS, _REF_ADDR = 0x01, 0x10


# A whole declaration: code, tag, whether it has children, pairs of attribute and form (one has a number after it), two
# zeros. In C, because thousands are passed over for each that is wanted.
_NUMBER, _NOT_ZERO = rb"[\x80-\xff]*+[\0-\x7f]", rb"(?:[\x80-\xff]++[\0-\x7f]|[\x01-\x7f])"
_ENTRY = re.compile(rb"(" + _NOT_ZERO + rb")" + _NUMBER + rb"[\0-\xff]"
                    rb"(?:" + _NOT_ZERO + rb"(?:\x21" + _NUMBER + rb"|" + _NOT_ZERO + rb"))*+\0\0")


class Corrupt(ValueError):
    """The bytes cannot be what DWARF allows; the message says why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How wide a unit's offsets and addresses are, in bytes, and its DWARF version."""

    version: int
    offset: int
    address: int


@dataclass(frozen=True, slots=True)
class Declaration:
    """One abbreviation. `fixed` is the entry's size after its code, None where it must be stepped through.

    `name` and `sibling` are (position after the code, form) where a fixed number of bytes stands before them.
    """

    tag: int
    has_children: bool
    attributes: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]
    fixed: int | None
    name: tuple[int, int] | None
    sibling: tuple[int, int] | None
    at: int


class Abbreviations(dict[int, Declaration]):
    """code -> Declaration of one table, scanned as far as it was needed and taken apart only where it is.

    pyelftools takes 10 ms to parse the whole table of a kernel's unit.
    """

    def __init__(self, data: bytes, at: int, shape: Shape) -> None:
        self._data, self._at, self._shape = data, at, shape
        self._scanned: dict[bytes, int] = {}

    def __missing__(self, code: int) -> Declaration:
        # A code that is not as short as it could be is one that no producer writes.
        place = self._scanned.get(spelled := uleb_bytes(code))
        if place is None:
            place = self._scan(spelled, code)
        self[code] = declaration = self._declaration(place)
        return declaration

    def _scan(self, spelled: bytes, code: int) -> int:
        """Where the declaration of that code stands, after the code."""
        found = None
        while found != spelled:
            entry = _ENTRY.match(self._data, self._at)
            if entry is None:
                raise Corrupt(f"abbreviation {code} is not declared")
            found, self._at = entry[1], entry.end()
            self._scanned.setdefault(found, entry.end(1))
        return self._scanned[spelled]

    def _declaration(self, at: int) -> Declaration:
        data, start, attributes = self._data, at, []
        tag, at = uleb(data, at)
        has_children = data[at] == 1
        at += 1
        while True:
            attribute, at = uleb(data, at)
            form, at = uleb(data, at)
            if form == _IMPLICIT_CONST:
                at = stepped(data, at, (_LEB,))
            elif form == 0:
                break
            attributes.append((attribute, form))
        return _declared(tag, has_children, tuple(attributes), self._shape, start)


class ParsedTable(AbbrevTable):
    """The same table for pyelftools, which else would parse all of it first."""

    def __init__(self, declared: Abbreviations, stream: IO[bytes], structs: DWARFStructs) -> None:
        self._declared, self._bytes, self._fields = declared, stream, structs.Dwarf_abbrev_declaration
        self._parsed: dict[int, AbbrevDecl] = {}

    def get_abbrev(self, code: int) -> AbbrevDecl:
        if code not in self._parsed:
            self._parsed[code] = AbbrevDecl(code, struct_parse(self._fields, self._bytes, self._declared[code].at))
        return self._parsed[code]


def _declared(tag: int, has_children: bool, attributes: tuple[tuple[int, int], ...], shape: Shape,
              at: int) -> Declaration:
    steps = tuple(_size(form, shape) for _, form in attributes)
    placed: dict[int, tuple[int, int]] = {}
    before = 0
    for (attribute, form), step in zip(attributes, steps, strict=True):
        placed.setdefault(attribute, (before, form))
        if step < 0:
            break
        before += step
    fixed = sum(steps) if all(step >= 0 for step in steps) else None
    sibling = placed.get(DW_AT_SIBLING)
    if sibling and sibling[1] not in REFERENCE_WIDTHS:
        sibling = None
    return Declaration(tag, has_children, attributes, steps, fixed, placed.get(DW_AT_NAME), sibling, at)


def _size(form: int, shape: Shape) -> int:
    if form == _ADDRESS or (form == _REF_ADDR and shape.version == 2):
        return shape.address
    if form in _OFFSETS:
        return shape.offset
    if form not in _SIZES:
        raise Corrupt(f"form {form:#x} is not known")
    return _SIZES[form]


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """The ULEB128 number at `at`, and the offset after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise Corrupt(f"a number at {at} has over 64 bits")


def uleb_bytes(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def stepped(data: bytes, at: int, steps: tuple[int, ...], byte_order: str = "<") -> int:
    """The offset after these attributes."""
    for step in steps:
        if step >= 0:
            at += step
        elif step == _LEB:
            _, at = uleb(data, at)
        elif step == _CSTRING:
            at = data.index(0, at) + 1
        elif step == _BLOCK:
            size, at = uleb(data, at)
            at += size
        else:
            width = _COUNTED[step]
            at += width + number(data, at, width, byte_order)
    return at


def number(data: bytes, at: int, width: int, byte_order: str) -> int:
    return int.from_bytes(data[at:at + width], "little" if byte_order == "<" else "big")
