"""DWARF entries to layouts: a struct's entry, and of the types below it only those it is made of."""

from __future__ import annotations

from typing import Any

from elftools.dwarf.die import DIE

from kcompat.dwarf_abbreviations import Corrupt
from kcompat.dwarf_headers import Header
from kcompat.dwarf_units import Unit, Units
from kcompat.layout import Array, Member, Scalar, Struct, Type, misfit

_MAX_DEPTH = 64
_AGGREGATES = frozenset(("DW_TAG_structure_type", "DW_TAG_union_type", "DW_TAG_class_type"))
_TRANSPARENT = frozenset(("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type",
                          "DW_TAG_atomic_type"))
_SIZED = frozenset(("DW_TAG_base_type", "DW_TAG_enumeration_type"))
_DW_TAG_MEMBER, _DW_TAG_SUBRANGE = 0x0D, 0x21
_DW_OP_PLUS_UCONST = 0x23


class Types:
    """Builds each type once, however many members have it."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self._built: dict[tuple[Header, int], Type] = {}

    def struct(self, unit: Unit, at: int) -> Struct:
        """The struct, union or class of that entry. Raises Corrupt when it is not one that a compiler could lay."""
        built = self._type(unit, at, 0)
        if not isinstance(built, Struct):
            raise Corrupt(f"the entry at {unit.header.start + at} is no struct")
        return built

    def _type(self, unit: Unit, at: int, depth: int) -> Type:
        """The type as members see it, typedefs and qualifiers looked through."""
        key = unit.header, at
        built = self._built.get(key)
        if built is None:
            if depth > _MAX_DEPTH:
                raise Corrupt(f"the type at {unit.header.start + at} contains itself or is over {_MAX_DEPTH} deep")
            built = self._built[key] = self._build(unit, unit.die(at), depth)
        return built

    def _build(self, unit: Unit, die: DIE, depth: int) -> Type:
        if die.tag in _AGGREGATES:
            if "DW_AT_signature" in die.attributes:
                return self._target(unit, die, "DW_AT_signature", depth)
            return self._struct(unit, die, depth)
        if die.tag in _TRANSPARENT and "DW_AT_type" in die.attributes:
            return self._target(unit, die, "DW_AT_type", depth)
        if die.tag == "DW_TAG_pointer_type":
            return Scalar(_number(die, "DW_AT_byte_size", unit.header.shape.address))
        if die.tag in _SIZED:
            return Scalar(_number(die, "DW_AT_byte_size"))
        if die.tag == "DW_TAG_array_type":
            return self._array(unit, die, depth)
        raise Corrupt(f"the type at {unit.header.start + die.offset} is a {die.tag}: it has no size, yet a member "
                      "is one")

    def _target(self, unit: Unit, die: DIE, attribute: str, depth: int) -> Type:
        """The type an attribute refers to: in its own unit, elsewhere in the section, or by signature."""
        if attribute not in die.attributes:
            raise Corrupt(f"the {die.tag} at {unit.header.start + die.offset} has no {attribute}")
        form, value = die.attributes[attribute].form, die.attributes[attribute].raw_value
        if form == "DW_FORM_ref_sig8":
            header = self._units.signed(value)
            return self._type(self._units.open(header), header.type_at, depth + 1)
        if form == "DW_FORM_ref_addr":
            header = self._units.at(unit.header.content, value)
            return self._type(self._units.open(header), value - header.start, depth + 1)
        if form not in ("DW_FORM_ref1", "DW_FORM_ref2", "DW_FORM_ref4", "DW_FORM_ref8", "DW_FORM_ref_udata"):
            raise Corrupt(f"a reference by {form} leads out of this file")
        return self._type(unit, value, depth + 1)

    def _array(self, unit: Unit, die: DIE, depth: int) -> Type:
        built = self._target(unit, die, "DW_AT_type", depth)
        lengths = []
        for child in self._children(unit, die, _DW_TAG_SUBRANGE):
            # An upper bound of -1 is how some compilers write a length of 0; without any bound it is flexible.
            upper = _number(child, "DW_AT_upper_bound", -1)
            lengths.append(_number(child, "DW_AT_count", (upper + 1) % 2**64))
        for length in reversed(lengths):
            built = Array(built, length, built.size * length)
        return built

    def _struct(self, unit: Unit, die: DIE, depth: int) -> Struct:
        name = (name_of(die) or b"").decode()
        if "DW_AT_declaration" in die.attributes:
            return Struct(name, 0, None)
        size = _number(die, "DW_AT_byte_size")
        members = tuple(self._member(unit, die, child, depth) for child in self._children(unit, die, _DW_TAG_MEMBER))
        if (member := misfit(members, size)) is not None:
            raise Corrupt(f"member {member} ends past the {size} bytes of struct {name or '(anonymous)'}")
        return Struct(name, size, members)

    def _children(self, unit: Unit, die: DIE, tag: int) -> list[DIE]:
        return [unit.die(at) for at, _, declared in unit.children(die.offset) if declared.tag == tag]

    def _member(self, unit: Unit, parent: DIE, die: DIE, depth: int) -> Member:
        name = (name_of(die) or b"").decode()
        member_type = self._target(unit, die, "DW_AT_type", depth)
        if "DW_AT_bit_size" not in die.attributes:
            return Member(name, _byte_offset(parent, die) * 8, member_type)
        bit_size = _number(die, "DW_AT_bit_size")
        if "DW_AT_data_bit_offset" in die.attributes:
            return Member(name, _number(die, "DW_AT_data_bit_offset"), member_type, bit_size)
        start = _byte_offset(parent, die) * 8
        # Before DWARF 4 bits are counted from the most significant one of a storage unit of byte_size.
        from_top = _number(die, "DW_AT_bit_offset")
        if self._units.byte_order == "<":
            unit_size = _number(die, "DW_AT_byte_size", member_type.size)
            return Member(name, start + unit_size * 8 - from_top - bit_size, member_type, bit_size)
        return Member(name, start + from_top, member_type, bit_size)


def name_of(die: DIE) -> bytes | None:
    value = die.attributes["DW_AT_name"].value if "DW_AT_name" in die.attributes else None
    return value if isinstance(value, bytes) else None


def is_declaration(die: DIE) -> bool:
    """Whether the members are elsewhere: nowhere in this unit, or in a type unit of their own."""
    return "DW_AT_declaration" in die.attributes or "DW_AT_signature" in die.attributes


def _byte_offset(parent: DIE, die: DIE) -> int:
    if "DW_AT_data_member_location" not in die.attributes:
        if parent.tag == "DW_TAG_union_type":
            return 0
        # DWARF would have it at 0, but gcc and clang say so of every member of a struct: what said it is damaged.
        raise Corrupt(f"the {die.tag} at {die.offset} has no place")
    value: Any = die.attributes["DW_AT_data_member_location"].value
    if isinstance(value, list) and value[:1] == [_DW_OP_PLUS_UCONST]:
        return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(value[1:]))
    return _number(die, "DW_AT_data_member_location")


def _number(die: DIE, attribute: str, default: int | None = None) -> int:
    value = die.attributes[attribute].value if attribute in die.attributes else default
    if not isinstance(value, int):
        raise Corrupt(f"the {attribute} of the {die.tag} at {die.offset} is not a number: {value}")
    return value
