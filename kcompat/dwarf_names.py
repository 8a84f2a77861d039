"""Which units name a struct: its name's places in .debug_str, and who refers to those, found by searching bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import groupby

from kcompat.dwarf_abbreviations import (
    AGGREGATES,
    DW_AT_DECLARATION,
    LINE_STRP,
    STRING,
    STRP,
    STRX,
    STRX_WIDTHS,
    Corrupt,
    Declaration,
    number,
    uleb,
)
from kcompat.dwarf_headers import LONGEST_HEADER, Header
from kcompat.dwarf_sections import Content, Sections
from kcompat.dwarf_units import Unit, Units

_BATCH = 1 << 20
# A common word is the tail of some 300 strings of a kernel. More, or more mentions in a unit, are not looked at.
_MAX_PLACES = 512

# A unit, and the two bytes before each place of the name in it (None: its places are not known).
_Hit = tuple[Header, list[bytes] | None]


class Names:
    """Finds units by the names in them. A unit found may only mention the name; one not found does not have it."""

    def __init__(self, sections: Sections, units: Units) -> None:
        self._units = units
        self._strings_index = sections.index(".debug_str")
        self._str_offsets = next(iter(sections.all(".debug_str_offsets")), None)
        self._based: dict[int, list[Header]] | None = None

    def likely(self, name: bytes) -> Iterator[Header]:
        """Units that refer to the name where its linker put it, or that have it inline as compilers do if it is short.

        Every linker keeps one copy of a string. Those that also let it be the tail of a longer one take the tail of
        the next string in the order of reversed strings, so of hundreds that end so only one need be looked for.
        Units that seem only to declare the struct, or to call a member so, come last.
        """
        offsets = list(places(name + b"\0", self._units.strings))
        whole = [at for at in offsets if self._start(at) == at]
        tail = min(offsets, key=lambda at: self._units.strings[self._start(at):at][::-1], default=None)
        chosen = whole or [at for at in (tail,) if at is not None]
        doubtful = []
        for header, before in self._search(chosen, name if not chosen or len(name) < 4 else None):
            if before is None or self._may_define(header, before):
                yield header
            else:
                doubtful.append(header)
        yield from doubtful

    def any(self, name: bytes) -> Iterator[Header]:
        """Units that have the name in whatever way: much slower where it is the tail of many strings."""
        offsets = [*places(name + b"\0", self._units.strings), *places(name + b"\0", self._units.line_strings)]
        return (header for header, _ in self._search(offsets, name))

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

    def _may_define(self, header: Header, before: list[bytes]) -> bool:
        """Whether one of these bytes that stand before the name is the code of a definition that starts with it."""
        declared = self._units.declared(header, header.content.read(header.start, LONGEST_HEADER))
        for pair in before:
            for code in (pair[-1:], pair) if pair else ():
                try:
                    declaration = declared[uleb(code, 0)[0]]
                except (Corrupt, IndexError):  # not a code
                    continue
                if (declaration.tag in AGGREGATES and declaration.name and declaration.name[0] == 0
                        and all(attribute != DW_AT_DECLARATION for attribute, _ in declaration.attributes)):
                    return True
        return False

    def _start(self, at: int) -> int:
        return self._units.strings.rfind(b"\0", 0, at) + 1

    def _search(self, offsets: list[int], inline: bytes | None) -> Iterator[_Hit]:
        # An object file's references to strings stand in its relocations, and its sections hold zeros there.
        plain = [struct.pack(self._units.byte_order + "I", at) for at in offsets]
        text = [inline + b"\0"] if inline else []
        for content, known in self._units.headers.items():
            if content.relocations and offsets and self._strings_index is not None:
                found = sorted(content.relocations.places(self._strings_index, set(offsets)))
                yield from ((header, None) for header, _ in groupby(self._units.at(content, at) for at in found))
            yield from _holding(content, known, text if content.relocations else text + plain)
        if self._str_offsets:
            yield from ((header, None) for header in self._by_number(self._str_offsets, set(offsets)))

    def _by_number(self, table: Content, offsets: set[int]) -> Iterator[Header]:
        """Units whose part of .debug_str_offsets has one of these places in .debug_str."""
        if self._based is None:
            self._based = {}
            for header in (header for known in self._units.headers.values() for header in known):
                if header.shape.version == 5 and (base := self._units.str_offsets_base(header)) is not None:
                    self._based.setdefault(base, []).append(header)
        bases = sorted(self._based)
        for base, following in zip(bases, [*bases[1:], table.size], strict=True):
            word = {4: "I", 8: "Q"}[self._based[base][0].shape.offset]
            part = self._units.str_offsets[base:following]
            if any(struct.pack(self._units.byte_order + word, at) in part for at in offsets):
                yield from self._based[base]


def _holding(content: Content, known: list[Header], needles: list[bytes]) -> Iterator[_Hit]:
    """The units in which one of `needles` stands, read in batches of many small units."""
    batch: list[Header] = []
    for header in known if needles else ():
        batch.append(header)
        if header.end - batch[0].start >= _BATCH or header is known[-1]:
            start = batch[0].start
            data = content.read(start, header.end - start)
            for one in batch:
                before = [data[max(0, at - 2):at] for needle in needles
                          for at in places(needle, data, one.start - start, one.end - start)]
                if before:
                    yield one, before
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
