"""A minimal BTF of one kernel: our structs with our fields, enough for libbpf's `btf_custom_path` to relocate CO-RE.

Only members count for that: their names, offsets and kinds of type. Every struct ends behind its last known member,
so ``bpf_core_type_size`` of one is too small, and the padding has no names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from kcompat.errors import KcompatError
from kcompat.fields import Field, in_one_union
from kcompat.offsets import Offset, State
from offset_db.exchange_btf_types import Row, Types
from offset_db.queries import chosen
from offset_db.rows import Remembered

_BIG_ENDIAN = ("s390x", "ppc", "ppc64")
_NARROW = ("i386", "i686", "armv7l", "ppc")

# struct -> its first member, another struct. The kernel relies on these being first ("has to be the first member"
# stands in its headers), so their offset is 0 everywhere.
_FIRST = {
    "sock": ("__sk_common", "sock_common"),
    "inet_sock": ("sk", "sock"),
    "inet_connection_sock": ("icsk_inet", "inet_sock"),
    "tcp_sock": ("inet_conn", "inet_connection_sock"),
}
_INTEGERS = {"unsigned char": (1, False), "unsigned short": (2, False), "short": (2, True), "int": (4, True),
             "unsigned int": (4, False)}
_SIGNED = ("s8", "s16", "s32", "s64", "__s8", "__s16", "__s32", "__s64")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A member with its type, in bits from the start of what it is in; `bits` only for a bitfield."""

    name: str
    type_id: int
    start: int
    size: int
    align: int
    bits: int = 0

    @property
    def end(self) -> int:
        return self.start + self.size


def render(remembered: Remembered) -> bytes:
    """The BTF. Raises KcompatError where nothing is known, or where two fields claim the same bytes."""
    known = {f: o for f, o in chosen(remembered).items() if o.state is State.KNOWN}
    if not known:
        raise KcompatError(f"{remembered.kernel.release or remembered.kernel.key}: no known offset to make BTF of")
    machine = remembered.kernel.machine
    types = Types(big_endian=machine in _BIG_ENDIAN, pointer_size=4 if machine in _NARROW else 8)
    _Structs(types, known).define_all()
    return types.to_bytes()


class _Structs:
    """Defines each struct once, after the one it begins with."""

    def __init__(self, types: Types, known: Mapping[Field, Offset]) -> None:
        self._types = types
        self._known: dict[str, dict[Field, Offset]] = {}
        for field, offset in known.items():
            self._known.setdefault(field.struct, {})[field] = offset
        self._sizes: dict[str, tuple[int, int]] = {}
        self._names = list(self._known)
        # What leads from one of them to another: inet_connection_sock has no field of ours, but tcp_sock begins so.
        for name in self._known:
            while name in _FIRST:
                name = _FIRST[name][1]
                if name not in self._names:
                    self._names.append(name)

    def define_all(self) -> None:
        for name in self._names:
            self._types.reserve(name)
        for name in self._names:
            self._define(name)

    def _define(self, name: str) -> None:
        if name in self._sizes:
            return
        pieces = self._united({f: self._leaf(f, offset) for f, offset in self._known.get(name, {}).items()})
        members = _checked(name, [*self._first(name), *_nested(self._types, pieces)])
        self._sizes[name] = size, _ = _extent(members)
        self._types.define(name, size // 8, [_row(m) for m in members])

    def _first(self, name: str) -> list[_Piece]:
        """The struct that this one begins with."""
        if name not in _FIRST:
            return []
        member, inner = _FIRST[name]
        self._define(inner)
        size, align = self._sizes[inner]
        return [_Piece(member, self._types.named(inner), 0, size, align)] if size else []

    def _united(self, leaves: Mapping[Field, _Piece]) -> list[_Piece]:
        """The leaves, those of one union put into an anonymous one."""
        made: dict[Field, _Piece] = {}
        for field, piece in leaves.items():
            partner = next((f for f, p in made.items() if in_one_union(f, field) and p.start == piece.start), None)
            if partner is None:
                made[field] = piece
                continue
            one = made[partner]
            outer, dot, _ = one.name.rpartition(".")
            rows = [_row(replace(p, name=p.name.rpartition(".")[2], start=0)) for p in (one, piece)]
            size = max(one.size, piece.size)
            union = self._types.anonymous(size // 8, rows, union=True)
            made[partner] = _Piece(outer + dot, union, one.start, size, max(one.align, piece.align))
        return list(made.values())

    def _leaf(self, field: Field, offset: Offset) -> _Piece:
        start, width = (offset.offset or 0) * 8, offset.width or field.width
        if offset.bit_offset is not None and offset.bit_size is not None:
            storage = self._types.integer(4, signed=field.signed)
            return _Piece(field.paths[0], storage, start + offset.bit_offset, offset.bit_size, 8, offset.bit_size)
        type_id, align = self._type(field, width)
        return _Piece(field.paths[0], type_id, start, width * 8, align * 8)

    def _type(self, field: Field, width: int) -> tuple[int, int]:
        """The type of a member of that many bytes, and its alignment."""
        types, words = self._types, field.c_type
        if words.endswith("*"):
            *kind, name = words.rstrip("*").split()
            target = types.named(name) if "struct" in kind else 0
            for _ in range(words.count("*")):
                target = types.pointer(target)
            return target, types.pointer_size
        if words == "struct in6_addr":
            return _in6_addr(types), 4
        if words == "atomic64_t":
            return types.typedef(words, types.anonymous(8, [("counter", types.integer(8, signed=True), 0, 0)])), 8
        base = words.removeprefix("volatile ")
        size, signed = _INTEGERS.get(base, (width, field.signed or base in _SIGNED))
        integer = types.integer(width, signed=signed)
        # A typedef keeps its name where the kernel has the field as wide as the catalogue.
        plain = integer if base in _INTEGERS or " " in base or width != field.width else types.typedef(base, integer)
        align = width if width in (1, 2, 4, 8) and size == width else 1
        return types.volatile(plain) if base != words else plain, align


def _nested(types: Types, pieces: Iterable[_Piece]) -> list[_Piece]:
    """Members of members put into anonymous structs: ``ns.inum`` becomes ``struct { ... inum; } ns``.

    Where such a struct begins is a field's business (``msg_iter``), or else not known: then it is made to begin at the
    first of its members, or before it for the sake of alignment. Relocation adds the offsets: the sum is what matters.
    """
    found: list[_Piece] = []
    inner: dict[str, list[_Piece]] = {}
    for piece in pieces:
        outer, dot, rest = piece.name.partition(".")
        if dot:
            inner.setdefault(outer, []).append(replace(piece, name=rest))
        else:
            found.append(piece)
    for name, parts in inner.items():
        members = _nested(types, parts)
        align = max(m.align for m in members)
        whole = next((p for p in found if p.name == name), None)
        found = [p for p in found if p is not whole]
        start = whole.start if whole else min(m.start for m in members) // align * align
        moved = _checked(name, [replace(m, start=m.start - start) for m in members])
        size = max(_extent(moved)[0], whole.size if whole else 0)
        found.append(_Piece(name, types.anonymous(size // 8, [_row(m) for m in moved]), start, size, align))
    return _arrays(types, found)


def _arrays(types: Types, pieces: list[_Piece]) -> list[_Piece]:
    """``tuplehash[0]`` and ``tuplehash[1]`` become one array, of elements as long as the two are apart.

    They are made to end with what is known of them: what comes first in each is not.
    """
    elements: dict[str, list[_Piece]] = {}
    for piece in sorted(pieces, key=lambda p: p.start):
        if "[" in piece.name:
            elements.setdefault(piece.name.partition("[")[0], []).append(piece)
    found = [p for p in pieces if "[" not in p.name]
    for name, parts in elements.items():
        first = parts[0]
        stride = parts[1].start - first.start if len(parts) > 1 else first.size
        even = [replace(first, name=f"{name}[{n}]", start=first.start + n * stride) for n in range(len(parts))]
        begin = first.start - (stride - first.size)
        if even != parts or begin < 0 or stride < first.size:
            raise KcompatError(f"the elements of {name} are not all known, or lie as in no array")
        element = types.anonymous(stride // 8, [("", first.type_id, stride - first.size, 0)])
        found.append(_Piece(name, types.array(element, len(parts)), begin, stride * len(parts), first.align))
    return found


def _extent(members: list[_Piece]) -> tuple[int, int]:
    """Size and alignment, in bits, of a struct that ends with the last of these."""
    align = max((m.align for m in members), default=8)
    return -(-max((m.end for m in members), default=0) // align) * align, align


def _checked(struct: str, members: list[_Piece]) -> list[_Piece]:
    ordered = sorted(members, key=lambda m: m.start)
    for one, other in pairwise(ordered):
        if one.end > other.start:
            raise KcompatError(f"{struct}.{one.name} and {struct}.{other.name} lie on the same bytes: see "
                               "`kcompat db verify`")
    return ordered


def _row(piece: _Piece) -> Row:
    return piece.name, piece.type_id, piece.start, piece.bits


def _in6_addr(types: Types) -> int:
    """As in linux/in6.h; it is part of the kernel's ABI."""
    byte, half, word = (types.integer(size, signed=False) for size in (1, 2, 4))
    rows: list[Row] = [("u6_addr8", types.array(byte, 16), 0, 0),
                       ("u6_addr16", types.array(types.typedef("__be16", half), 8), 0, 0),
                       ("u6_addr32", types.array(types.typedef("__be32", word), 4), 0, 0)]
    union = types.anonymous(16, rows, union=True)
    return types.anonymous(16, [("in6_u", union, 0, 0)], name="in6_addr")
