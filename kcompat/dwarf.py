"""Offsets from DWARF debug information: vmlinux, a module or an object file, read with pyelftools."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationHandler, RelocationSection

from kcompat.elf import Elf, open_file
from kcompat.errors import BadInput, KcompatError, Missing
from kcompat.fields import Field, structs
from kcompat.kernel import Kernel
from kcompat.layout import Array, Member, Scalar, Struct, Type, misfit, offset_of
from kcompat.offsets import Offset

_MAX_DEPTH = 64
_MAX_NEEDLES = 256
_AGGREGATES = frozenset(("DW_TAG_structure_type", "DW_TAG_union_type", "DW_TAG_class_type"))
_TRANSPARENT = frozenset(("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type",
                          "DW_TAG_atomic_type"))
_SIZED = frozenset(("DW_TAG_base_type", "DW_TAG_enumeration_type"))
_DW_OP_PLUS_UCONST = 0x23
_GNU_DWO_NAME = b"\xb0\x42"  # DW_AT_GNU_dwo_name as .debug_abbrev spells it (ULEB128)


class DwarfResolver:
    """Answers from the DWARF of one ELF file, with the first definition of each struct."""

    name = "dwarf"

    def __init__(self, path: Path) -> None:
        self._path = path

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterable[Offset]:
        """Raises Missing when the file does not exist, BadInput when it holds no whole DWARF."""
        found = load(self._path, structs(wanted))
        return [offset_of(f, found.get(f.struct), self.name) for f in wanted]


def load(path: Path, names: Iterable[str]) -> dict[str, Struct]:
    """The layouts of the structs of these names; a struct that is only declared has no members.

    Raises Missing when there is no such file, BadInput for anything that is not ELF with whole DWARF.
    """
    if not path.exists():
        raise Missing(f"{path} does not exist: give a vmlinux, a .ko or a .o with debug information")
    data = open_file(path)
    elf = Elf(data, path)
    _refuse_what_lies_elsewhere(elf)
    try:
        return _Reader(ELFFile(cast(IO[bytes], data)), path).structs(names)
    except KcompatError:
        raise
    except Exception as error:
        # On corrupt input pyelftools lets out whatever its parsing ran into: KeyError, AssertionError, RecursionError.
        raise BadInput(path, f"corrupt DWARF: {type(error).__name__}: {error}") from error


def _refuse_what_lies_elsewhere(elf: Elf) -> None:
    sized = {s.name for s in elf.sections if s.size}
    if ".gnu_debugaltlink" in sized:
        raise BadInput(elf.path, "part of its DWARF was moved to another file by dwz")
    if ".debug_info" not in sized and ".zdebug_info" not in sized:
        if ".debug_info.dwo" in sized:
            raise BadInput(elf.path, "split DWARF (.dwo): it cannot be read without its skeleton")
        raise BadInput(elf.path, "no DWARF in it (no .debug_info): stripped, or built without -g")


class _Reader:
    def __init__(self, elf: ELFFile, path: Path) -> None:
        self._path = path
        # Not relocated by pyelftools: it would spend minutes on a vmlinux linked with --emit-relocs, which needs none.
        self._dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
        if elf["e_type"] == "ET_REL":
            for part in ("debug_info", "debug_types", "debug_str_offsets"):
                setattr(self._dwarf, f"{part}_sec", _relocated(elf, "." + part))
        self._endian = "<" if elf.little_endian else ">"
        self._built: dict[tuple[Any, int], Type] = {}
        self._by_signature: dict[int, DIE] | None = None

    def structs(self, names: Iterable[str]) -> dict[str, Struct]:
        """Looks at the top-level DIEs of one unit after the other until every name has a definition."""
        missing = {name.encode(): self._needles(name.encode()) for name in names}
        found: dict[str, Struct] = {}
        for unit, content in self._units():
            if not missing:
                break
            if not any(needles is None or any(n in content for n in needles) for needles in missing.values()):
                continue
            for die in self._children(unit.get_top_DIE()):
                name = _bytes(die, "DW_AT_name")
                if die.tag not in _AGGREGATES or name not in missing:
                    continue
                if _is_declaration(die):
                    found.setdefault(name.decode(), Struct(name.decode(), 0, None))
                    continue
                built = self._type(die, 0)
                assert isinstance(built, Struct)
                found[name.decode()] = built
                del missing[name]
        return found

    def _units(self) -> Iterator[tuple[Any, bytes]]:
        """Each unit and its bytes. Its entries are not touched: reading its abbreviations costs pyelftools 10 ms."""
        abbreviations = self._dwarf.debug_abbrev_sec
        may_be_split = abbreviations is not None and _GNU_DWO_NAME in _content(abbreviations.stream)
        for section, units in ((self._dwarf.debug_info_sec, self._dwarf.iter_CUs()),
                               (self._dwarf.debug_types_sec, self._dwarf.iter_TUs())):
            content = _content(section.stream) if section else b""
            for unit in units:
                if may_be_split or unit.header.get("unit_type") == "DW_UT_skeleton":
                    self._refuse_skeleton(unit.get_top_DIE())
                yield unit, content[unit.cu_offset:unit.cu_offset + unit.size]

    def _refuse_skeleton(self, top: DIE) -> None:
        dwo = _bytes(top, "DW_AT_dwo_name") or _bytes(top, "DW_AT_GNU_dwo_name")
        if dwo is not None:
            raise BadInput(self._path, f"split DWARF: its types are in {dwo.decode(errors='replace')}")

    def _needles(self, name: bytes) -> list[bytes] | None:
        """Byte strings one of which stands in every unit that names a struct so: the name, or its place in .debug_str.

        None where that cannot be told: names by index (clang's DWARF 5), or too many places to be worth it.
        """
        if self._dwarf.debug_str_offsets_sec is not None:
            return None
        needles = [name + b"\0"]
        strings = _content(self._dwarf.debug_str_sec.stream) if self._dwarf.debug_str_sec else b""
        at = strings.find(name + b"\0")
        while at >= 0:
            needles.append(struct.pack(self._endian + "I", at))
            if len(needles) > _MAX_NEEDLES:
                return None
            at = strings.find(name + b"\0", at + 1)
        return needles

    def _children(self, parent: DIE) -> Iterator[DIE]:
        """The direct children. pyelftools' own iteration would follow a corrupt DW_AT_sibling round in circles."""
        if not parent.has_children:
            return
        unit, offset = parent.cu, parent.offset + parent.size
        while not (child := self._die(unit, offset, parent)).is_null():
            yield child
            if child.has_children and "DW_AT_sibling" in child.attributes:
                following = child.get_DIE_from_attribute("DW_AT_sibling").offset
            else:
                following = self._end(child)
            if following <= offset:
                raise BadInput(self._path, f"corrupt DWARF: the sibling of the entry at {offset} lies before it")
            offset = following

    def _end(self, die: DIE) -> int:
        """The offset after `die` and all below it."""
        offset, depth = die.offset + die.size, int(bool(die.has_children))
        while depth:
            inner = self._die(die.cu, offset, die)
            offset += inner.size
            depth += int(bool(inner.has_children)) - int(inner.is_null())
        return offset

    def _die(self, unit: Any, offset: int, near: DIE) -> DIE:
        if offset >= unit.cu_offset + unit.size:
            raise BadInput(self._path, f"corrupt DWARF: an entry at {offset} lies outside its unit")
        return DIE(unit, near.stream, offset)

    def _target(self, die: DIE, attribute: str) -> DIE:
        if die.attributes[attribute].form == "DW_FORM_ref_sig8":
            return self._signed(die.attributes[attribute].raw_value)
        return die.get_DIE_from_attribute(attribute)

    def _signed(self, signature: int) -> DIE:
        """The type of that signature, in .debug_types (DWARF 4) or a type unit of .debug_info (DWARF 5)."""
        if self._by_signature is None:
            units: list[tuple[Any, int | None]] = [(u, u.header.get("type_signature")) for u in self._dwarf.iter_CUs()]
            units += [(u, u["signature"]) for u in self._dwarf.iter_TUs()]
            self._by_signature = {
                s: self._die(u, u.cu_offset + u["type_offset"], u.get_top_DIE()) for u, s in units if s is not None}
        if signature not in self._by_signature:
            raise BadInput(self._path, f"no type unit of signature {signature:016x}")
        return self._by_signature[signature]

    def _type(self, die: DIE, depth: int) -> Type:
        """The type as members see it, typedefs and qualifiers looked through."""
        key = (die.stream, die.offset)
        built = self._built.get(key)
        if built is None:
            if depth > _MAX_DEPTH:
                raise BadInput(self._path, f"the type at {die.offset} contains itself or is over {_MAX_DEPTH} deep")
            built = self._built[key] = self._build(die, depth)
        return built

    def _build(self, die: DIE, depth: int) -> Type:
        if die.tag in _AGGREGATES:
            if "DW_AT_signature" in die.attributes:
                return self._type(self._target(die, "DW_AT_signature"), depth + 1)
            return self._struct(die, depth)
        if die.tag in _TRANSPARENT and "DW_AT_type" in die.attributes:
            return self._type(self._target(die, "DW_AT_type"), depth + 1)
        if die.tag == "DW_TAG_pointer_type":
            return Scalar(self._number(die, "DW_AT_byte_size", die.cu["address_size"]))
        if die.tag in _SIZED:
            return Scalar(self._number(die, "DW_AT_byte_size"))
        if die.tag == "DW_TAG_array_type":
            return self._array(die, depth)
        raise BadInput(self._path, f"the type at {die.offset} is a {die.tag}: it has no size, yet a member is one")

    def _array(self, die: DIE, depth: int) -> Type:
        built = self._type(self._target(die, "DW_AT_type"), depth + 1)
        lengths = []
        for child in self._children(die):
            if child.tag == "DW_TAG_subrange_type":
                # An upper bound of -1 is how some compilers write a length of 0; without any bound it is flexible.
                upper = self._number(child, "DW_AT_upper_bound", -1)
                lengths.append(self._number(child, "DW_AT_count", (upper + 1) % 2**64))
        for length in reversed(lengths):
            built = Array(built, length, built.size * length)
        return built

    def _struct(self, die: DIE, depth: int) -> Struct:
        name = (_bytes(die, "DW_AT_name") or b"").decode()
        if _is_declaration(die):
            return Struct(name, 0, None)
        size = self._number(die, "DW_AT_byte_size")
        members = tuple(self._member(child, depth) for child in self._children(die) if child.tag == "DW_TAG_member")
        built = Struct(name, size, members)
        if (member := misfit(built)) is not None:
            raise BadInput(self._path, f"member {member} ends past the {size} bytes of struct {name or '(anonymous)'}")
        return built

    def _member(self, die: DIE, depth: int) -> Member:
        name = (_bytes(die, "DW_AT_name") or b"").decode()
        member_type = self._type(self._target(die, "DW_AT_type"), depth + 1)
        start = self._byte_offset(die) * 8
        if "DW_AT_bit_size" not in die.attributes:
            return Member(name, start, member_type)
        bit_size = self._number(die, "DW_AT_bit_size")
        if "DW_AT_data_bit_offset" in die.attributes:
            return Member(name, self._number(die, "DW_AT_data_bit_offset"), member_type, bit_size)
        # Before DWARF 4 bits are counted from the most significant one of a storage unit of byte_size.
        from_top = self._number(die, "DW_AT_bit_offset", 0)
        if self._endian == "<":
            unit_size = self._number(die, "DW_AT_byte_size", member_type.size)
            return Member(name, start + unit_size * 8 - from_top - bit_size, member_type, bit_size)
        return Member(name, start + from_top, member_type, bit_size)

    def _byte_offset(self, die: DIE) -> int:
        if "DW_AT_data_member_location" not in die.attributes:
            return 0
        value = die.attributes["DW_AT_data_member_location"].value
        if isinstance(value, list) and value[:1] == [_DW_OP_PLUS_UCONST]:
            return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(value[1:]))
        return self._number(die, "DW_AT_data_member_location")

    def _number(self, die: DIE, attribute: str, default: int | None = None) -> int:
        value = die.attributes[attribute].value if attribute in die.attributes else default
        if not isinstance(value, int):
            raise BadInput(self._path, f"the {attribute} of the {die.tag} at {die.offset} is not a number: {value}")
        return value


def _relocated(elf: ELFFile, name: str) -> DebugSectionDescriptor | None:
    """The sections of that name as one: an object file has each type unit in a section of its own (a COMDAT group)."""
    relocations = {s["sh_info"]: s for s in elf.iter_sections() if isinstance(s, RelocationSection)}
    joined = BytesIO()
    for index, section in enumerate(elf.iter_sections()):
        if section.name == name:
            part = BytesIO(section.data())
            if index in relocations:
                RelocationHandler(elf).apply_section_relocations(part, relocations[index])
            joined.write(part.getvalue())
    size = joined.tell()
    return DebugSectionDescriptor(joined, name, 0, size, 0) if size else None


def _content(stream: IO[bytes]) -> bytes:
    assert isinstance(stream, BytesIO)
    return stream.getvalue()  # shares the bytes, copies nothing


def _bytes(die: DIE, attribute: str) -> bytes | None:
    value = die.attributes[attribute].value if attribute in die.attributes else None
    return value if isinstance(value, bytes) else None


def _is_declaration(die: DIE) -> bool:
    return "DW_AT_declaration" in die.attributes or "DW_AT_signature" in die.attributes
