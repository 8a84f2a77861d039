"""The units of .debug_info and .debug_types: by place and by signature, opened one by one, walked entry by entry."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from elftools.dwarf.abbrevtable import AbbrevTable
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

from kcompat.dwarf_abbreviations import (
    DW_AT_STR_OFFSETS_BASE,
    REFERENCE_WIDTHS,
    Abbreviations,
    Corrupt,
    Declaration,
    ParsedTable,
    number,
    stepped,
    uleb,
)
from kcompat.dwarf_headers import Header, headers
from kcompat.dwarf_sections import Content, Sections

_TOP_ENTRY = 1024
_SECTIONS = ("debug_info", "debug_aranges", "debug_abbrev", "debug_frame", "eh_frame", "debug_str", "debug_loc",
             "debug_ranges", "debug_line", "debug_pubtypes", "debug_pubnames", "debug_addr", "debug_str_offsets",
             "debug_line_str", "debug_loclists", "debug_rnglists", "debug_sup", "gnu_debugaltlink", "debug_types")


class Units:
    """Every unit of one file, by place and by signature, with the sections they refer to."""

    def __init__(self, sections: Sections) -> None:
        self.path: Path = sections.elf.path
        self.byte_order = sections.elf.byte_order
        self.strings = sections.whole(".debug_str")
        self.line_strings = sections.whole(".debug_line_str")
        self.str_offsets = sections.whole(".debug_str_offsets")
        self.abbreviations = sections.whole(".debug_abbrev")
        self.contents = sections.all(".debug_info")
        types = sections.all(".debug_types")
        self.headers = {content: list(headers(content, self.byte_order, content in types))
                        for content in (*self.contents, *types)}
        self._opened: dict[tuple[Content, int], Unit] = {}
        self._signed: dict[int, Header] | None = None
        self._bases: dict[Header, int | None] = {}

    def open(self, header: Header) -> Unit:
        key = header.content, header.start
        if key not in self._opened:
            self._opened[key] = Unit(header, self)
        return self._opened[key]

    def close(self, header: Header) -> None:
        """Forgets a unit of which nothing was used."""
        self._opened.pop((header.content, header.start), None)

    def at(self, content: Content, offset: int) -> Header:
        """The unit that holds that byte of the section."""
        known = self.headers[content]
        number = bisect_right(known, offset, key=lambda h: h.start) - 1
        if number < 0 or offset >= known[number].end:
            raise Corrupt(f"offset {offset} lies in no unit")
        return known[number]

    def signed(self, signature: int) -> Header:
        """The type unit of that signature, in .debug_types (DWARF 4) or in .debug_info (DWARF 5)."""
        if self._signed is None:
            self._signed = {h.signature: h for known in self.headers.values() for h in known
                            if h.signature is not None}
        if signature not in self._signed:
            raise Corrupt(f"no type unit of signature {signature:016x}")
        return self._signed[signature]

    def str_offsets_base(self, header: Header) -> int | None:
        """DW_AT_str_offsets_base of the unit's first entry, the only attribute of it that is read."""
        if header not in self._bases:
            self._bases[header] = self._read_base(header)
        return self._bases[header]

    def declared(self, header: Header, data: bytes) -> Abbreviations:
        """The abbreviations of the unit that starts with `data`."""
        table = number(data, header.abbreviations - header.start, header.shape.offset, self.byte_order)
        if table >= len(self.abbreviations):
            raise Corrupt(f"the abbreviations of the unit at {header.start} lie outside .debug_abbrev")
        return Abbreviations(self.abbreviations, table, header.shape)

    def _read_base(self, header: Header) -> int | None:
        data = header.content.relocated(header.start, min(header.end - header.start, _TOP_ENTRY))
        code, at = uleb(data, header.entries - header.start)
        top = self.declared(header, data)[code]
        names = [attribute for attribute, _ in top.attributes]
        if DW_AT_STR_OFFSETS_BASE not in names:
            return None
        at = stepped(data, at, top.steps[:names.index(DW_AT_STR_OFFSETS_BASE)], self.byte_order)
        return number(data, at, header.shape.offset, self.byte_order)


class Unit:
    """One unit in memory, relocated. Offsets are from its start, as its own references are."""

    def __init__(self, header: Header, units: Units) -> None:
        self.header = header
        self.data = header.content.relocated(header.start, header.end - header.start)
        self._byte_order = units.byte_order
        self._declared = units.declared(header, self.data)
        self._stream = BytesIO(self.data)
        self._units = units

    def die(self, at: int) -> DIE:
        """The entry there, parsed by pyelftools."""
        if not self.header.entries - self.header.start <= at < len(self.data):
            raise Corrupt(f"an entry at {at} lies outside the unit at {self.header.start}")
        return DIE(self._parsed, self._stream, at)

    def top(self) -> DIE:
        """Its first entry, which pyelftools has to be asked for in its own way for names by number in it."""
        die: DIE = self._parsed.get_top_DIE()
        return die

    def children(self, at: int) -> Iterator[tuple[int, int, Declaration]]:
        """(offset, offset after the code, declaration) of each direct child of the entry at `at`.

        What is below them is stepped over: by DW_AT_sibling where there is one, else entry by entry.
        """
        data, declared, end, byte_order = self.data, self._declared, len(self.data), self._byte_order
        code, at = uleb(data, at)
        declaration = declared[code]
        if not declaration.has_children:
            return
        at = stepped(data, at, declaration.steps, byte_order)
        depth = 0
        while at < end:
            start = at
            code = data[at]
            at += 1
            if code >= 0x80:
                code, at = uleb(data, start)
            if code == 0:
                if depth == 0:
                    return
                depth -= 1
                continue
            declaration = declared[code]
            if depth == 0:
                yield start, at, declaration
            if declaration.has_children:
                if declaration.sibling is not None:
                    place, form = declaration.sibling
                    following = number(data, at + place, REFERENCE_WIDTHS[form], byte_order)
                    if following <= start:
                        raise Corrupt(f"the sibling of the entry at {start} lies before it")
                    at = following
                    continue
                depth += 1
            fixed = declaration.fixed
            at = at + fixed if fixed is not None else stepped(data, at, declaration.steps, byte_order)
        raise Corrupt(f"the entries of the unit at {self.header.start} run past its end")

    @cached_property
    def _parsed(self) -> Any:
        """The unit as pyelftools has it, alone in its section; most units are only walked and never need it."""
        units, shape = self._units, self.header.shape
        is_type = self.header.signature is not None and shape.version < 5
        given = {"debug_abbrev": units.abbreviations, "debug_str": units.strings,
                 "debug_line_str": units.line_strings, "debug_str_offsets": units.str_offsets}
        described = dict.fromkeys(f"{name}_sec" for name in _SECTIONS) | {
            f"{name}_sec": DebugSectionDescriptor(BytesIO(data), name, 0, len(data), 0) for name, data in given.items()}
        # An entry of a type unit looks for its stream in .debug_info all the same.
        for name in ("debug_info", "debug_types") if is_type else ("debug_info",):
            described[f"{name}_sec"] = DebugSectionDescriptor(self._stream, name, 0, len(self.data), 0)
        info = _OneUnit(DwarfConfig(self._byte_order == "<", "", shape.address), **described)
        info.table = ParsedTable(self._declared, BytesIO(units.abbreviations), info.structs)
        return next(info.iter_TUs() if is_type else info.iter_CUs())


class _OneUnit(DWARFInfo):
    table: AbbrevTable

    def get_abbrev_table(self, offset: int) -> AbbrevTable:
        return self.table
