"""BTF bytes to layouts: one pass indexes every type, and only the structs asked for are built (pure, no I/O)."""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, count
from os import PathLike

from kcompat.errors import BadInput
from kcompat.layout import Array, Member, Scalar, Struct, Type, misfit

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)

MAGICS = {b"\x9f\xeb": "little", b"\xeb\x9f": "big"}
_HEADER = 24
_LAYOUT_HEADER = 32
_MAX_DEPTH = 64  # the kernel itself resolves no more than 32 (MAX_RESOLVE_DEPTH)
_SIZED = frozenset((INT, ENUM, ENUM64, FLOAT))
_TRANSPARENT = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
# BTF does not say how wide a pointer is; a kernel's long is as wide.
_LONGS = ("long unsigned int", "unsigned long")  # as gcc and clang name it

# 32-bit words after the three of struct btf_type: fixed ones, and ones for each of `vlen` elements.
_WORDS = {
    INT: (1, 0), PTR: (0, 0), ARRAY: (3, 0), STRUCT: (0, 3), UNION: (0, 3), ENUM: (0, 2), FWD: (0, 0), TYPEDEF: (0, 0),
    VOLATILE: (0, 0), CONST: (0, 0), RESTRICT: (0, 0), FUNC: (0, 0), FUNC_PROTO: (0, 2), VAR: (1, 0), DATASEC: (0, 3),
    FLOAT: (0, 0), DECL_TAG: (1, 0), TYPE_TAG: (0, 0), ENUM64: (0, 3),
}


def kind_of(info: int) -> int:
    # Seven bits since Linux 7.1, five before with the others always zero; vlen likewise 24 and 16.
    return info >> 24 & 0x7F


def vlen_of(info: int) -> int:
    return info & 0xFFFFFF


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


class Btf:
    """One BTF blob; a module's split BTF continues the type ids and the strings of its base.

    Everything that is wrong with the bytes is BadInput, on opening or when a struct is asked for.
    """

    def __init__(self, data: bytes, path: str | PathLike[str], base: Btf | None = None) -> None:
        self._path, self._base = path, base
        order = MAGICS.get(data[:2])
        if order is None:
            raise BadInput(path, f"not BTF: magic {data[:2].hex() or 'missing'}")
        self.byte_order = order
        if base is not None and base.byte_order != order:
            raise BadInput(path, f"{order}-endian BTF on a {base.byte_order}-endian base")
        types, self._strings, extra_words = self._sections(data)
        self._first_string: int = base.string_end if base else 0
        self.string_end: int = self._first_string + len(self._strings)
        self._first_id: int = base.id_end if base else 1
        self._words = array("I")
        self._words.frombytes(types)
        if order != sys.byteorder:
            self._words.byteswap()
        self._starts = self._index(_WORDS | extra_words)
        self.id_end: int = self._first_id + len(self._starts)
        self._pointer = Scalar(base.pointer_size if base else 8)
        self._built: dict[int, Type] = {}
        self._open: set[int] = set()

    @property
    def pointer_size(self) -> int:
        return self._pointer.size

    def structs(self, names: Iterable[str]) -> dict[str, tuple[Struct, ...]]:
        """Every struct or union of each name, the base's first; forward declarations have no members."""
        names = tuple(names)
        found: dict[str, tuple[Struct, ...]] = self._base.structs(names) if self._base else {}
        if self._base:
            self._pointer = Scalar(self._base.pointer_size)
        hits = list(self._named({*names, *_LONGS}))
        for _, type_id, at in hits:
            if kind_of(self._words[at + 1]) == INT:
                self._pointer = Scalar(self._sized(type_id, at).size)
        for name, type_id, at in hits:
            kind = kind_of(self._words[at + 1])
            if name in names and kind in (STRUCT, UNION, FWD):
                built = Struct(name, 0, None) if kind == FWD else self._type(type_id, 0)
                assert isinstance(built, Struct)
                _look_into(built)
                found[name] = (*found.get(name, ()), built)
        return found

    def _sections(self, data: bytes) -> tuple[memoryview, bytes, dict[int, tuple[int, int]]]:
        """The type and string sections, and the shape of kinds this module does not know."""
        endian = "<" if self.byte_order == "little" else ">"
        if len(data) < _HEADER:
            raise self._bad("BTF header cut off")
        version, flags, header, type_at, type_size, string_at, string_size = struct.unpack_from(
            endian + "xxBBIIIII", data)
        if version != 1 or flags != 0:
            raise self._bad(f"BTF version {version} with flags {flags:#x}; only version 1 without flags is known")
        if header < _HEADER or header % 4 or header > len(data) or any(data[_LAYOUT_HEADER:header]):
            raise self._bad(f"BTF header of {header} bytes")
        type_end, string_end, body = type_at + type_size, string_at + string_size, len(data) - header
        if type_end > body or string_end > body:
            raise self._bad(f"BTF truncated: sections end at {header + max(type_end, string_end)}, the data at "
                            f"{len(data)}")
        if type_at % 4 or type_size % 4 or (type_at < string_end and string_at < type_end and type_size):
            raise self._bad("BTF sections overlap or are not aligned")
        strings = data[header + string_at:header + string_end]
        if strings[-1:] != b"\0" and (strings or not self._base):
            raise self._bad("BTF string section does not end with a NUL")
        if not self._base and strings[0]:
            raise self._bad("BTF string section does not start with a NUL; a module's split BTF needs its base")
        extra = {}
        if header >= _LAYOUT_HEADER:
            extra = self._extra_kinds(data, header, *struct.unpack_from(endian + "II", data, _HEADER))
        elif any(data[_HEADER:header]):
            raise self._bad(f"BTF header of {header} bytes")
        return memoryview(data)[header + type_at:header + type_end], strings, extra

    def _extra_kinds(self, data: bytes, header: int, at: int, size: int) -> dict[int, tuple[int, int]]:
        """struct btf_layout of each kind (Linux 7.1): with it a reader can step over kinds newer than itself."""
        if header + at + size > len(data):
            raise self._bad("BTF layout section truncated")
        layout = data[header + at:header + at + size]
        shapes = {kind: (layout[i], layout[i + 1]) for kind, i in enumerate(range(0, size - 3, 4)) if kind > ENUM64}
        return {kind: (info // 4, element // 4) for kind, (info, element) in shapes.items()
                if info % 4 == 0 and element % 4 == 0}

    def _index(self, shapes: dict[int, tuple[int, int]]) -> list[int]:
        """Where each type starts in the words. The only loop over all types, so it does nothing else."""
        words, at, starts = self._words, 0, list[int]()
        # info -> words the type takes: worked out once for each of the few thousand values a file has.
        taken: dict[int, int] = {}
        add, end = starts.append, len(words)
        try:
            while at < end:
                add(at)
                info = words[at + 1]
                try:
                    at += taken[info]
                except KeyError:
                    taken[info] = self._taken(info, shapes)
                    at += taken[info]
        except IndexError:
            at = -1
        if at != end:
            raise self._bad(f"BTF type {self._first_id + len(starts) - 1} ends past the type section")
        return starts

    def _taken(self, info: int, shapes: dict[int, tuple[int, int]]) -> int:
        shape = shapes.get(kind_of(info))
        if shape is None:
            raise self._bad(f"BTF type of unknown kind {kind_of(info)}")
        return 3 + shape[0] + shape[1] * vlen_of(info)

    def _named(self, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
        """(name, type id, start) of the types of these names."""
        by_offset = self._places({name.encode(): name for name in names})
        words = self._words
        chosen = map(by_offset.__contains__, map(words.__getitem__, self._starts))
        for number in compress(count(), chosen):
            at = self._starts[number]
            yield by_offset[words[at]], self._first_id + number, at

    def _places(self, names: dict[bytes, str]) -> dict[int, str]:
        """String offset -> the name that stands there.

        A producer that lets a string be the tail of another writes no copy of its own of that one. So tails are
        looked for only where there is none: a short name is the tail of hundreds.
        """
        found = self._base._places(names) if self._base else {}
        strings = self._strings
        # Without a choice before the first NUL, for then re looks for that byte alone.
        whole = re.compile(b"\0(" + b"|".join(map(re.escape, names)) + b")(?=\0)")
        hits = [(match.start(1), match[1]) for match in whole.finditer(strings)]
        # A module's own strings begin with no empty one.
        hits += [(0, name) for name in names if strings.startswith(name + b"\0")]
        for name in names.keys() - {name for _, name in hits}:
            at = strings.find(name + b"\0")
            while at >= 0:
                hits.append((at, name))
                at = strings.find(name + b"\0", at + 1)
        return found | {self._first_string + at: names[name] for at, name in hits}

    def _string(self, offset: int) -> str:
        if self._base and offset < self._first_string:
            return self._base._string(offset)
        at = offset - self._first_string
        if at >= len(self._strings):
            raise self._bad(f"BTF string offset {offset} past the {self.string_end} bytes of strings")
        try:
            return self._strings[at:self._strings.index(b"\0", at)].decode()
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
        if not self._first_id <= type_id < self.id_end:
            raise self._bad(f"BTF type id {type_id} is not one of the {self.id_end - 1} types")
        words, at = self._words, self._starts[type_id - self._first_id]
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
