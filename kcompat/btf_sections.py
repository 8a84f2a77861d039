"""The header of BTF: byte order, where types and strings lie, the shape of kinds newer than this reader (pure)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from kcompat.btf_index import ENUM64, Shapes
from kcompat.elf import Data

MAGICS: dict[bytes, Literal["little", "big"]] = {b"\x9f\xeb": "little", b"\xeb\x9f": "big"}
_HEADER = 24
_LAYOUT_HEADER = 32


class Fault(Exception):
    """What is wrong with the header, in words."""


@dataclass(frozen=True, slots=True)
class Sections:
    """Where in the data the sections are, in bytes."""

    byte_order: Literal["little", "big"]
    types: slice
    strings: slice
    extra_shapes: Shapes


def sections(data: Data, *, split: bool) -> Sections:
    """`split`: its strings and types continue a base's. Raises Fault."""
    order = MAGICS.get(data[:2])
    if order is None:
        raise Fault(f"not BTF: magic {data[:2].hex() or 'missing'}")
    if len(data) < _HEADER:
        raise Fault("BTF header cut off")
    endian = "<" if order == "little" else ">"
    version, flags, header, type_at, type_size, string_at, string_size = struct.unpack_from(endian + "xxBBIIIII", data)
    if version != 1 or flags != 0:
        raise Fault(f"BTF version {version} with flags {flags:#x}; only version 1 without flags is known")
    if header < _HEADER or header % 4 or header > len(data) or any(data[_LAYOUT_HEADER:header]):
        raise Fault(f"BTF header of {header} bytes")
    type_end, string_end, body = type_at + type_size, string_at + string_size, len(data) - header
    if type_end > body or string_end > body:
        raise Fault(f"BTF truncated: sections end at {header + max(type_end, string_end)}, the data at {len(data)}")
    if type_at % 4 or type_size % 4 or (type_at < string_end and string_at < type_end and type_size):
        raise Fault("BTF sections overlap or are not aligned")
    strings = slice(header + string_at, header + string_end)
    if string_size and data[strings.stop - 1]:
        raise Fault("BTF string section does not end with a NUL")
    if not split and not string_size:
        raise Fault("BTF string section is empty; a module's split BTF needs its base")
    if not split and data[strings.start]:
        raise Fault("BTF string section does not start with a NUL; a module's split BTF needs its base")
    extra: Shapes = {}
    if header >= _LAYOUT_HEADER:
        extra = _extra_shapes(data, header, *struct.unpack_from(endian + "II", data, _HEADER))
    elif any(data[_HEADER:header]):
        raise Fault(f"BTF header of {header} bytes")
    return Sections(order, slice(header + type_at, header + type_end), strings, extra)


def _extra_shapes(data: Data, header: int, at: int, size: int) -> Shapes:
    """struct btf_layout of each kind (Linux 7.1): with it a reader can step over kinds newer than itself."""
    if header + at + size > len(data):
        raise Fault("BTF layout section truncated")
    layout = data[header + at:header + at + size]
    shapes = {kind: (layout[i], layout[i + 1]) for kind, i in enumerate(range(0, size - 3, 4)) if kind > ENUM64}
    return {kind: (info // 4, element // 4) for kind, (info, element) in shapes.items()
            if info % 4 == 0 and element % 4 == 0}
