"""Which units name a struct: its name's places in .debug_str, and who refers to those, found by searching bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

from kcompat.dwarf_abbreviations import (
    AGGREGATES,
    DW_AT_DECLARATION,
    LINE_STRP,
    REFERENCE_WIDTHS,
    STRING,
    STRP,
    STRX,
    STRX_WIDTHS,
    Abbreviations,
    Corrupt,
    Declaration,
    number,
    uleb,
    uleb_bytes,
)
from kcompat.dwarf_headers import LONGEST_HEADER, Header
from kcompat.dwarf_sections import Content, Sections
from kcompat.dwarf_units import Unit, Units

_BATCH = 1 << 20
# A common word is the tail of thousands of strings of a kernel; the same one again in so many objects of a module.
_MAX_PLACES, _MAX_COPIES = 1 << 16, 512
# How far `any` looks for what no compiler or linker known here writes: all of a module, little of a vmlinux.
_MAX_SEARCHED = 1 << 28


@dataclass(frozen=True, slots=True)
class _Hit:
    """A unit, its bytes, and the places in them where the name may stand in a form."""

    header: Header
    data: bytes
    places: list[int]
    forms: tuple[int, ...]


class Names:
    """Finds units by the names in them. A unit found may only mention the name."""

    def __init__(self, sections: Sections, units: Units) -> None:
        self._units = units
        self._strings_index = sections.index(".debug_str")
        self._str_offsets = next(iter(sections.all(".debug_str_offsets")), None)
        self._based: dict[int, list[Header]] | None = None
        self._left = _MAX_SEARCHED

    def likely(self, name: bytes) -> Iterator[Header]:
        """Units with an entry that defines the name, written as compilers write it and kept where linkers keep it.

        Compilers begin a definition with its name, and have the name inline if it is short. Every linker keeps one
        copy of a string. Those that also let it be the tail of a longer one take the tail of the next string in the
        order of reversed strings, so of thousands that end so only one need be looked for. Last comes a unit that
        only declares the struct, if there is one.
        """
        offsets = list(places(name + b"\0", self._units.strings))
        whole = [at for at in offsets if self._start(at) == at]
        tail = min(offsets, key=lambda at: self._units.strings[self._start(at):at][::-1], default=None)
        chosen = whole[:_MAX_COPIES] or [at for at in (tail,) if at is not None]
        declaring = None
        for hit in self._search(chosen, name if not chosen or len(name) < 4 else None):
            defines = self._defines(hit)
            if defines:
                yield hit.header
            elif defines is False and declaring is None:
                declaring = hit.header
        if declaring:
            yield declaring

    def any(self, name: bytes) -> Iterator[Header]:
        """Units that have the name in whatever way, as far as there is time for that in a large file."""
        size = sum(content.size for content in self._units.headers)
        needles = max(0, self._left) // max(size, 1)
        offsets = list(islice(places(name + b"\0", self._units.strings), min(needles, _MAX_COPIES)))
        offsets += islice(places(name + b"\0", self._units.line_strings), min(needles, _MAX_COPIES))
        self._left -= size * (len(offsets) + 1)
        return (hit.header for hit in self._search(offsets, name if needles else None))

    def of(self, unit: Unit, at: int, declared: Declaration) -> bytes | None:
        """The name of the entry whose attributes start at `at`, without parsing the entry where that can be."""
        if declared.name is None:
            return None
        place, form = declared.name
        start, word, order = at + place, unit.header.shape.offset, self._units.byte_order
        if form == STRING:
            return unit.data[start:unit.data.index(0, start)]
        if form == LINE_STRP:
            return string(self._units.line_strings, number(unit.data, start, word, order))
        if form == STRP:
            return string(self._units.strings, number(unit.data, start, word, order))
        if form not in STRX_WIDTHS and form != STRX:
            return None
        index = uleb(unit.data, start)[0] if form == STRX else number(unit.data, start, STRX_WIDTHS[form], order)
        base = self._units.str_offsets_base(unit.header)
        if base is None:
            raise Corrupt(f"the unit at {unit.header.start} has names by number and no DW_AT_str_offsets_base")
        return string(self._units.strings, number(self._units.str_offsets, base + index * word, word, order))

    def _defines(self, hit: _Hit) -> bool | None:
        """Whether an entry that starts with the name at one of the places defines a struct; False: one declares it."""
        header = hit.header
        # In an object file even where its abbreviations lie is a relocation; the rest is good as it stands.
        declared = self._units.declared(header, header.content.relocated(header.start, LONGEST_HEADER))
        told: dict[bytes, list[Declaration]] = {}
        declares = None
        for at in hit.places:
            before = hit.data[max(0, at - 2):at]
            if before not in told:
                told[before] = list(_aggregates(declared, before, hit.forms))
            for declaration in told[before]:
                if any(attribute == DW_AT_DECLARATION for attribute, _ in declaration.attributes):
                    declares = False
                elif self._goes_on(hit.data, at, declaration):
                    return True
        return declares

    def _goes_on(self, data: bytes, at: int, declaration: Declaration) -> bool:
        """Whether the entry after that one lies where an entry can, if this one tells."""
        if declaration.sibling is None:
            return True
        place, form = declaration.sibling
        return at < number(data, at + place, REFERENCE_WIDTHS[form], self._units.byte_order) < len(data)

    def _start(self, at: int) -> int:
        return self._units.strings.rfind(b"\0", 0, at) + 1

    def _search(self, offsets: list[int], inline: bytes | None) -> Iterator[_Hit]:
        # An object file's references to strings stand in its relocations, and its sections hold zeros there.
        plain = [struct.pack(self._units.byte_order + "I", at) for at in offsets]
        for content, known in self._units.headers.items():
            if content.relocations and offsets and self._strings_index is not None:
                found = sorted(content.relocations.places(self._strings_index, set(offsets)))
                for header, group in groupby(found, partial(self._units.at, content)):
                    data = content.read(header.start, header.end - header.start)
                    yield _Hit(header, data, [at - header.start for at in group], (STRP, LINE_STRP))
            if not content.relocations:
                yield from _holding(content, known, plain, (STRP, LINE_STRP))
            if inline:
                yield from _holding(content, known, [inline + b"\0"], (STRING,))
        if self._str_offsets:
            yield from self._by_number(self._str_offsets, set(offsets))

    def _by_number(self, table: Content, offsets: set[int]) -> Iterator[_Hit]:
        """Units whose part of .debug_str_offsets has one of these places in .debug_str."""
        if self._based is None:
            self._based = {}
            for header in (header for known in self._units.headers.values() for header in known):
                if header.shape.version == 5 and (base := self._units.str_offsets_base(header)) is not None:
                    self._based.setdefault(base, []).append(header)
        bases = sorted(self._based)
        for base, following in zip(bases, [*bases[1:], table.size], strict=True):
            word = self._based[base][0].shape.offset
            part = self._units.str_offsets[base:following]
            needles = (at.to_bytes(word, "little" if self._units.byte_order == "<" else "big") for at in offsets)
            indices = sorted({at // word for needle in needles for at in places(needle, part) if at % word == 0})
            for header in self._based[base] if indices else ():
                data = header.content.relocated(header.start, header.end - header.start)
                for index in indices:
                    for form, needle in self._spelled(index):
                        yield _Hit(header, data, list(places(needle, data)), (form,))

    def _spelled(self, index: int) -> Iterator[tuple[int, bytes]]:
        """The forms a string's number may have, with its bytes in each."""
        for form, width in STRX_WIDTHS.items():
            if index < 1 << 8 * width:
                yield form, index.to_bytes(width, "little" if self._units.byte_order == "<" else "big")
        yield STRX, uleb_bytes(index)


def _aggregates(declared: Abbreviations, before: bytes, forms: tuple[int, ...]) -> Iterator[Declaration]:
    """What the last of these bytes are the code of, if that is a struct whose entry begins with a name so written."""
    for code in {before[-1:], before} - {b""}:
        try:
            value, end = uleb(code, 0)
            declaration = declared[value]
        except (Corrupt, IndexError):  # not a code
            continue
        name = declaration.name
        if end == len(code) and declaration.tag in AGGREGATES and name and name[0] == 0 and name[1] in forms:
            yield declaration


def _holding(content: Content, known: list[Header], needles: list[bytes], forms: tuple[int, ...]) -> Iterator[_Hit]:
    """The units in which one of `needles` stands, read in batches of many small units."""
    batch: list[Header] = []
    for header in known if needles else ():
        batch.append(header)
        if header.end - batch[0].start >= _BATCH or header is known[-1]:
            start = batch[0].start
            data = content.read(start, header.end - start)
            for one in batch:
                found = [at - one.start + start for needle in needles
                         for at in places(needle, data, one.start - start, one.end - start)]
                if found:
                    yield _Hit(one, data[one.start - start:one.end - start], found, forms)
            batch = []


def places(needle: bytes, data: bytes, start: int = 0, end: int | None = None) -> Iterator[int]:
    """The places of `needle`: a string with its NUL may stand there alone or be the tail of another."""
    at = data.find(needle, start, end)
    for _ in range(_MAX_PLACES):
        if at < 0:
            return
        yield at
        at = data.find(needle, at + 1, end)


def string(strings: bytes, at: int) -> bytes:
    end = strings.find(b"\0", at)
    if not 0 <= at < end:
        return b""
    return strings[at:end]
