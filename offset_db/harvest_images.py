"""The kernel inside a boot image: bzImage, EFI zboot, a packed arm64 Image, or one without any ELF around it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from kcompat.elf import MAGIC as ELF_MAGIC
from kcompat.kernel import BANNER, build_id_of_notes
from offset_db.harvest_unpack import MAGICS

_BZIMAGE_PROTOCOL = 0x208  # the first whose header says where the payload is, Linux 2.6.26
_MAX_TRIES = 64
_MAX_VDSO = 1 << 20
_BUILD_ID_NOTE = struct.pack("<III", 4, 20, 3) + b"GNU\0"


def is_image(head: bytes) -> bool:
    """An x86 boot sector, or any EFI program: that is what every boot image is today, or an arm64 Image."""
    return head[0x202:0x206] == b"HdrS" or head[:2] == b"MZ" or is_arm64_image(head)


def is_arm64_image(head: bytes) -> bool:
    return head[0x38:0x3C] == b"ARM\x64"


def payloads(image: bytes) -> Iterator[int]:
    """Where a packed kernel may start: where the header says so, then wherever a packer's first bytes stand.

    The search is what the kernel's scripts/extract-vmlinux does; a wrong hit is found out by unpacking it.
    """
    told = _told(image)
    if told is not None:
        yield told
    hits = sorted({m.start() for magic in MAGICS for m in re.finditer(re.escape(magic), image)} - {told})
    yield from hits[:_MAX_TRIES]


def _told(image: bytes) -> int | None:
    if image[0x202:0x206] == b"HdrS" and len(image) > 0x250:
        protocol, = struct.unpack_from("<H", image, 0x206)
        if protocol >= _BZIMAGE_PROTOCOL:
            # setup_sects and payload_offset of Documentation/arch/x86/boot.rst
            offset, = struct.unpack_from("<I", image, 0x248)
            return ((image[0x1F1] or 4) + 1) * 512 + int(offset)
    if image[4:8] == b"zimg" and len(image) > 32:
        return int(struct.unpack_from("<I", image, 8)[0])
    return None


def btf_within(image: bytes) -> bytes | None:
    """The .BTF section of a kernel that has lost its section headers: a whole BTF blob that starts anywhere."""
    for match in re.finditer(rb"\x9f\xeb\x01\x00[\x18\x20]\0\0\0", image):
        if match.start() + 24 > len(image):
            break
        header, type_at, type_size, string_at, string_size = struct.unpack_from("<5I", image, match.start() + 4)
        end = match.start() + header + string_at + string_size
        # In what pahole and the kernel write the strings follow the types; anything smaller is no kernel's.
        if type_at == 0 and string_at >= type_size > 0 and string_size and end <= len(image):
            strings = match.start() + header + string_at
            if image[strings] == 0 and image[end - 1] == 0:
                return image[match.start():end]
    return None


def banner_within(image: bytes) -> tuple[str, str] | None:
    """(release, banner) of a bare image."""
    found = list(BANNER.finditer(image))
    best = next((m for m in found if re.search(rb" #\d", m[0])), found[0] if found else None)
    return (best[1].decode("latin-1"), best[0].decode("latin-1").strip()) if best else None


def build_id_within(image: bytes) -> str | None:
    """The build-id of a bare image, if there is one only: each vDSO in it is an ELF file with a note of its own."""
    outside = bytearray(image)
    # arm64 brings two, the second for 32-bit programs. ELF class -> e_shoff, the table after all else in a vDSO.
    for match in re.finditer(re.escape(ELF_MAGIC) + rb"([\x01\x02])\x01\x01", image):
        start, (place, word) = match.start(), {b"\x01": (32, "<I"), b"\x02": (40, "<Q")}[match[1]]
        if start + place + 8 <= len(image):
            table, = struct.unpack_from(word, image, start + place)
            end = min(start + table, start + _MAX_VDSO, len(image))
            outside[start:end] = bytes(end - start)
    notes = [bytes(outside[m.start():m.start() + 36]) for m in re.finditer(re.escape(_BUILD_ID_NOTE), outside)]
    return build_id_of_notes(notes[0]) if len(notes) == 1 else None
