"""Writes BTF: types are added once, members and strings are shared, and the bytes come out in either byte order."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kcompat.btf_index import ARRAY, FWD, INT, PTR, STRUCT, TYPEDEF, UNION, VOLATILE

_INT_SIGNED = 1 << 24
# (name, type id, bit position, size in bits of a bitfield or 0)
Row = tuple[str, int, int, int]


class Types:
    """A growing BTF blob. Equal types get one id; a struct may be named before its members are known."""

    def __init__(self, *, big_endian: bool, pointer_size: int) -> None:
        self.pointer_size = pointer_size
        self._order = ">" if big_endian else "<"
        self._strings = {"": 0}
        self._string_bytes = bytearray(b"\0")
        self._types: list[bytes] = []
        self._known: dict[bytes, int] = {}
        self._structs: dict[str, int] = {}
        # Readers learn the size of a pointer from this type; it must be there even if no member is one.
        self.integer(pointer_size, signed=False)

    def integer(self, size: int, *, signed: bool) -> int:
        """The plain C type of that size, by the name gcc gives it."""
        if size not in (1, 2, 4, 8):
            return self.array(self.integer(1, signed=False), size)
        word = {1: "char", 2: "short int", 4: "int", 8: "long int" if self.pointer_size == 8 else "long long int"}[size]
        if size == self.pointer_size:
            word = "long int"
        if not signed:
            stem = word.removesuffix(" int")
            word = "unsigned char" if size == 1 else "unsigned int" if stem == "int" else f"{stem} unsigned int"
        return self._add(INT, "signed char" if word == "char" else word, size, (size * 8 | signed * _INT_SIGNED,))

    def array(self, element: int, count: int) -> int:
        return self._add(ARRAY, "", 0, (element, self.integer(4, signed=False), count))

    def pointer(self, to: int) -> int:
        return self._add(PTR, "", to)

    def volatile(self, of: int) -> int:
        return self._add(VOLATILE, "", of)

    def typedef(self, name: str, of: int) -> int:
        return self._add(TYPEDEF, name, of)

    def reserve(self, name: str) -> None:
        """Gives a struct its id, so that a pointer to it may come before its members."""
        self._types.append(b"")
        self._structs[name] = len(self._types)

    def named(self, name: str) -> int:
        """The struct of that name, or a forward declaration of one that is not defined here."""
        return self._structs.get(name) or self._add(FWD, name, 0)

    def define(self, name: str, size: int, members: Sequence[Row]) -> int:
        type_id = self._structs[name]
        self._types[type_id - 1] = self._struct(STRUCT, name, size, members)
        return type_id

    def anonymous(self, size: int, members: Sequence[Row], *, union: bool = False, name: str = "") -> int:
        """A struct or union that is not asked for by name."""
        return self._once(self._struct(UNION if union else STRUCT, name, size, members))

    def to_bytes(self) -> bytes:
        types, strings = b"".join(self._types), bytes(self._string_bytes)
        header = struct.pack(f"{self._order}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
        return header + types + strings

    def _struct(self, kind: int, name: str, size: int, members: Sequence[Row]) -> bytes:
        bitfields = any(bits for *_, bits in members)
        words = [word for member, type_id, position, bits in sorted(members, key=lambda row: row[2])
                 for word in (self._string(member), type_id, position | bits << 24)]
        return self._pack(kind, name, size, words, vlen=len(members), flag=bitfields)

    def _add(self, kind: int, name: str, size_or_type: int, tail: Sequence[int] = ()) -> int:
        return self._once(self._pack(kind, name, size_or_type, tail))

    def _once(self, packed: bytes) -> int:
        if packed not in self._known:
            self._types.append(packed)
            self._known[packed] = len(self._types)
        return self._known[packed]

    def _pack(self, kind: int, name: str, size_or_type: int, tail: Sequence[int], *, vlen: int = 0,
              flag: bool = False) -> bytes:
        return struct.pack(f"{self._order}{3 + len(tail)}I", self._string(name), flag << 31 | kind << 24 | vlen,
                           size_or_type, *tail)

    def _string(self, text: str) -> int:
        if text not in self._strings:
            self._strings[text] = len(self._string_bytes)
            self._string_bytes += text.encode() + b"\0"
        return self._strings[text]
