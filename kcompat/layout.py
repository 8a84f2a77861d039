"""How the members of a C struct lie in memory, whichever debug format told us, and a catalogue field's place in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from dataclasses import field as dc_field

from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.offsets import Offset

_STEP = re.compile(r"(\w+)((?:\[\d+\])*)")
_WHOLE_BYTES = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A type nobody descends into: an integer, an enum, a pointer."""

    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Struct:
    """A C struct or union. `members` is None where only the name, and perhaps the size, is known.

    Layouts share their subtrees, so equality is identity: comparing by value could visit a subtree
    once per path that leads to it.
    """

    name: str
    size: int
    members: Collection[Member] | None = dc_field(repr=False)


@dataclass(frozen=True, slots=True)
class Array:
    """``element[count]``; a flexible array has count 0."""

    element: Type
    count: int
    size: int


Type = Scalar | Struct | Array


@dataclass(frozen=True, slots=True)
class Member:
    """One member; `name` is empty for an anonymous struct or union.

    `bit_position` counts bits from the start of the struct in memory order: from the least significant
    bit of a byte on a little-endian machine, from the most significant on a big-endian one.
    """

    name: str
    bit_position: int
    type: Type
    bit_size: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member path ends: `offset` and `width` in bytes; `bit_offset` (0..7) only for a true bitfield."""

    offset: int
    width: int
    bit_offset: int | None = None
    bit_size: int | None = None


class Opaque(KcompatError):
    """A path leads into a struct of which the debug information has no members: cannot tell."""


def misfit(members: Iterable[Member], size: int) -> str | None:
    """The first member that does not lie inside a struct of `size` bytes, as no compiler would lay it: corruption."""
    limit = size * 8
    for member in members:
        if member.bit_position + (member.bit_size or member.type.size * 8) > limit:
            return member.name or "(anonymous)"
    return None


def find(struct: Struct, path: str) -> Place | None:
    """The place of ``a.b.c`` or ``a[1].b`` in `struct`, through anonymous members at every step; None if not there.

    Raises Opaque when the path leads through a struct whose members are not known.
    """
    here: Type = struct
    position, bit_size = 0, None
    for step in path.split("."):
        parsed = _STEP.fullmatch(step)
        if parsed is None:
            raise ValueError(f"{path!r} is not a member path")
        hit = _member(here, parsed[1], set()) if isinstance(here, Struct) else None
        if hit is None:
            return None
        inner, member = hit
        position += inner
        here, bit_size = member.type, member.bit_size
        for index in map(int, re.findall(r"\d+", parsed[2])):
            if not isinstance(here, Array) or index >= here.count:
                return None
            here = here.element
            position += index * here.size * 8
    return _place(position, here.size, bit_size)


def _member(struct: Struct, name: str, seen: set[int]) -> tuple[int, Member] | None:
    """The member and its bit position; `seen` keeps a subtree shared by many anonymous members from many visits."""
    if struct.members is None:
        raise Opaque(f"the members of struct {struct.name} are not in it")
    for member in struct.members:
        if member.name == name:
            return member.bit_position, member
    seen.add(id(struct))
    for member in struct.members:
        if not member.name and isinstance(member.type, Struct) and id(member.type) not in seen:
            hit = _member(member.type, name, seen)
            if hit is not None:
                return member.bit_position + hit[0], hit[1]
    return None


def _place(position: int, size: int, bit_size: int | None) -> Place:
    offset, bit_offset = divmod(position, 8)
    if bit_size is None:
        return Place(offset, size)
    if bit_offset == 0 and bit_size in _WHOLE_BYTES:
        return Place(offset, bit_size // 8)
    return Place(offset, (bit_offset + bit_size + 7) // 8, bit_offset, bit_size)


def offset_of(field: Field, struct: Struct | None, source: str) -> Offset:
    """What `source` says of `field`, given its layout of the field's struct (None: it has no such struct).

    `absent` needs a struct whose members are all known; anything less is `unknown`.
    """
    teller = source.upper()
    if struct is None:
        return Offset.unknown(field, source, f"{teller} has no struct {field.struct}")
    if struct.members is None:
        return Offset.unknown(field, source, f"{teller} has struct {field.struct} only as a forward declaration")
    for path in field.paths:
        try:
            place = find(struct, path)
        except Opaque as error:
            return Offset.unknown(field, source, f"{teller}: {error}")
        if place is not None:
            return _judge(field, path, place, source)
    return Offset.absent(field, source,
                         f"{teller} has struct {field.struct} and no member {' or '.join(field.paths)}")


def _judge(field: Field, path: str, place: Place, source: str) -> Offset:
    if place.width == 0:
        return Offset.absent(field, source, f"{path} has size 0 in this kernel")
    if not field.may_be(place.width, is_bitfield=place.bit_size is not None):
        expected = " or ".join(map(str, field.widths))
        return Offset.unknown(field, source, f"{source.upper()} has {path} at offset {place.offset} with "
                                             f"{place.width} bytes, not {expected}")
    # Told only where the kernel calls the member otherwise: a database has this a hundred thousand times.
    evidence = {} if path == field.member else {"path": path}
    return Offset.known(field, place.offset, source, width=place.width, bit_offset=place.bit_offset,
                        bit_size=place.bit_size, evidence=evidence)


def agreed(field: Field, structs: Sequence[Struct], source: str) -> Offset:
    """`offset_of` where `source` may have several structs of that name: an answer only if all of them say the same."""
    defined = [s for s in structs if s.members is not None] or structs[:1]
    answers = [offset_of(field, s, source) for s in defined] or [offset_of(field, None, source)]
    first = answers[0]
    if all(first.same_place(other) for other in answers):
        return first
    candidates = tuple(sorted({a.offset for a in answers if a.offset is not None}))
    return Offset.unknown(field, source, f"{source.upper()} has {len(answers)} different structs {field.struct}",
                          candidates=candidates)
