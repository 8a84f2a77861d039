"""BTF bytes to layouts: only the structs asked for are looked for and built (pure, no I/O)."""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from os import PathLike

from kcompat.btf_index import (
    ARRAY,
    CONST,
    ENUM,
    ENUM64,
    FLOAT,
    FWD,
    INT,
    PTR,
    RESTRICT,
    SHAPES,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VOLATILE,
    Index,
    kind_of,
    vlen_of,
)
from kcompat.btf_sections import Fault, sections
from kcompat.elf import Data
from kcompat.errors import BadInput
from kcompat.layout import Array, Member, Scalar, Struct, Type, misfit

_MAX_DEPTH = 64  # the kernel itself resolves no more than 32 (MAX_RESOLVE_DEPTH)
_SIZED = frozenset((INT, ENUM, ENUM64, FLOAT))
_TRANSPARENT = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
# BTF does not say how wide a pointer is; a kernel's long is as wide.
_LONGS = ("long unsigned int", "unsigned long")  # as gcc and clang name it

Spells = Callable[[Data, int, int], re.Match[bytes] | None]


@dataclass(frozen=True, slots=True)
class _BitInt(Scalar):
    """An INT that does not fill its bytes: how a bitfield was written before kind_flag (Linux 4.20)."""

    shift: int
    bits: int


class _Members(Collection[Member]):
    """Members that are built when somebody looks: of the structs inside a struct hardly any is asked for."""

    def __init__(self, build: Callable[[], tuple[Member, ...]]) -> None:
        self._build = build

    @cached_property
    def _built(self) -> tuple[Member, ...]:
        return self._build()

    def __iter__(self) -> Iterator[Member]:
        return iter(self._built)

    def __len__(self) -> int:
        return len(self._built)

    def __contains__(self, member: object) -> bool:
        return member in self._built


def _look_into(built: Struct) -> None:
    """Has its members built: BadInput comes now."""
    if built.members is not None:
        len(built.members)


def _words(types: memoryview, byte_order: str) -> memoryview:
    """The type section as numbers, where it lies if this machine has its byte order."""
    if byte_order == sys.byteorder:
        return types.cast("I")
    words = array("I", types.tobytes())
    words.byteswap()
    return memoryview(words)


class Btf:
    """One BTF blob; a module's split BTF continues the type ids and the strings of its base.

    What is wrong with the bytes is BadInput, on opening or when a struct is asked for; what lies behind all that was
    asked for is not looked at.
    """

    def __init__(self, data: Data, path: str | PathLike[str], base: Btf | None = None) -> None:
        self._path, self._base, self._data = path, base, data
        try:
            found = sections(data, split=base is not None)
        except Fault as fault:
            raise self._bad(str(fault)) from None
        self.byte_order = found.byte_order
        if base is not None and base.byte_order != self.byte_order:
            raise self._bad(f"{self.byte_order}-endian BTF on a {base.byte_order}-endian base")
        self._strings = found.strings
        self._first_string: int = base.string_end if base else 0
        self.string_end: int = self._first_string + found.strings.stop - found.strings.start
        self._first_id: int = base.id_end if base else 1
        self._words = _words(memoryview(data)[found.types], self.byte_order)
        highest = 3 if self.byte_order == "little" else 0
        self._index = Index(self._words, data[found.types.start + highest:found.types.stop:4],
                            SHAPES | found.extra_shapes,
                            lambda number, fault: self._bad(f"BTF type {self._first_id + number} {fault}"))
        self._pointer = Scalar(base.pointer_size if base else 8)
        self._built: dict[int, Type] = {}
        self._open: set[int] = set()

    @property
    def id_end(self) -> int:
        """The first type id after these. Raises BadInput unless all of the types are sound."""
        return self._first_id + self._index.count()

    @property
    def pointer_size(self) -> int:
        return self._pointer.size

    def mentions(self, name: str) -> bool:
        """Whether anything has this name, of any kind; an old kernel may have things that its BTF does not mention."""
        word = b"\0" + name.encode() + b"\0"
        return self._data.find(word, self._strings.start, self._strings.stop) >= 0

    def structs(self, names: Iterable[str]) -> dict[str, tuple[Struct, ...]]:
        """Every struct or union of each name, the base's first; forward declarations have no members."""
        names = tuple(names)
        found: dict[str, tuple[Struct, ...]] = self._base.structs(names) if self._base else {}
        if self._base:
            self._pointer = Scalar(self._base.pointer_size)
        hits = list(self._named({*names, *_LONGS}))
        for _, number, at in hits:
            if kind_of(self._words[at + 1]) == INT:
                self._pointer = Scalar(self._sized(number, at).size)
        for name, number, at in hits:
            kind = kind_of(self._words[at + 1])
            if name in names and kind != INT:
                built = Struct(name, 0, None) if kind == FWD else self._type(self._first_id + number, 0)
                assert isinstance(built, Struct)
                _look_into(built)
                found[name] = (*found.get(name, ()), built)
        if not all(any(s.members is not None for s in found.get(name, ())) for name in names):
            # That something is not there can be said only of BTF that is sound to its end.
            self._index.count()
        return found

    def _named(self, names: Collection[str]) -> Iterator[tuple[str, int, int]]:
        """(name, number, start) of all integers, structs, unions and forwards of these names.

        What looks like one is judged by its name first, and then proved: one in a thousand is walked to.
        """
        spells = re.compile(b"(" + b"|".join(re.escape(n.encode()) for n in names) + b")\\0").match
        words = self._words
        for at in self._index.alike():
            hit = self._spelled(words[at], spells)
            if hit and (number := self._index.number(at)) is not None:
                yield hit[1].decode(), number, at

    def _spelled(self, offset: int, spells: Spells) -> re.Match[bytes] | None:
        """What the pattern finds at this offset of the strings, the base's or these."""
        if self._base and offset < self._first_string:
            return self._base._spelled(offset, spells)
        return spells(self._data, self._strings.start + offset - self._first_string, self._strings.stop)

    def _string(self, offset: int) -> str:
        if self._base and offset < self._first_string:
            return self._base._string(offset)
        at = self._strings.start + offset - self._first_string
        if at >= self._strings.stop:
            raise self._bad(f"BTF string offset {offset} past the {self.string_end} bytes of strings")
        try:
            return self._data[at:self._data.find(b"\0", at)].decode()
        except UnicodeDecodeError as error:
            raise self._bad(f"BTF string at {offset} is not text") from error

    def _type(self, type_id: int, depth: int) -> Type:
        """The type as members see it, typedefs and qualifiers looked through."""
        if self._base and type_id < self._first_id:
            return self._base._type(type_id, depth)
        built = self._built.get(type_id)
        if built is None:
            if depth > _MAX_DEPTH:
                raise self._bad(f"BTF type {type_id} contains itself or nests deeper than {_MAX_DEPTH}")
            built = self._built[type_id] = self._build(type_id, depth)
        return built

    def _build(self, type_id: int, depth: int) -> Type:
        words, at = self._words, self._index.start(type_id - self._first_id)
        if at is None:
            raise self._bad(f"BTF type id {type_id} is not one of the {self.id_end - 1} types")
        kind = kind_of(words[at + 1])
        if kind in (STRUCT, UNION):
            return self._struct(at, depth)
        if kind == PTR:
            return self._pointer
        if kind in _SIZED:
            return self._sized(type_id, at)
        if kind in _TRANSPARENT:
            return self._type(words[at + 2], depth + 1)
        if kind == ARRAY:
            element, length = self._type(words[at + 3], depth + 1), words[at + 5]
            return Array(element, length, element.size * length)
        raise self._bad(f"BTF type {type_id} of kind {kind} has no size, yet something is made of it")

    def _sized(self, type_id: int, at: int) -> Scalar:
        size = self._words[at + 2]
        if kind_of(self._words[at + 1]) == INT:
            encoding = self._words[at + 3]
            shift, bits = encoding >> 16 & 0xFF, encoding & 0xFF
            if not 0 < bits <= size * 8 - shift or size > 16:
                raise self._bad(f"BTF int {type_id} has {bits} bits at bit {shift} of {size} bytes")
            if bits != size * 8:
                return _BitInt(size, shift, bits)
        return Scalar(size)

    def _struct(self, at: int, depth: int) -> Struct:
        words = self._words
        name_offset, info, size = words[at:at + 3]
        vlen = vlen_of(info)
        name = self._string(name_offset)
        if size and not vlen:
            # The distilled base of an out-of-tree module keeps of a struct only its name and size.
            return Struct(name, size, None)
        built = Struct(name, size, _Members(lambda: self._members(built, at, bool(info >> 31), depth)))
        return built

    def _members(self, whole: Struct, at: int, bitfields: bool, depth: int) -> tuple[Member, ...]:
        if at in self._open:
            raise self._bad(f"BTF struct {whole.name or '(anonymous)'} contains itself")
        self._open.add(at)
        try:
            rows = self._words[at + 3:at + 3 + 3 * vlen_of(self._words[at + 1])]
            members = tuple(self._member(*row, bitfields, depth)
                            for row in zip(rows[::3], rows[1::3], rows[2::3], strict=True))
            if (misfitting := misfit(members, whole.size)) is not None:
                raise self._bad(f"BTF member {misfitting} ends past the {whole.size} bytes of struct "
                                f"{whole.name or '(anonymous)'}")
            # Every search goes through what has no name; one as large as its whole may be that itself.
            for member in members:
                if isinstance(member.type, Struct) and (not member.name or member.type.size == whole.size):
                    _look_into(member.type)
        finally:
            self._open.discard(at)
        return members

    def _member(self, name_offset: int, type_id: int, place: int, bitfields: bool, depth: int) -> Member:
        member_type = self._type(type_id, depth + 1)
        position, bits = (place & 0xFFFFFF, place >> 24) if bitfields else (place, 0)
        if not bits and isinstance(member_type, _BitInt):
            position, bits = position + member_type.shift, member_type.bits
        name = self._string(name_offset)
        if bits > member_type.size * 8 or (not bits and position % 8):
            raise self._bad(f"BTF member {name} has {bits} bits at bit {position}")
        return Member(name, position, member_type, bits or None)

    def _bad(self, fault: str) -> BadInput:
        return BadInput(self._path, fault)
