"""The members of tar, Debian and RPM packages, one after the other, without unpacking any to disk."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from kcompat.errors import BadInput
from offset_db.harvest_unpack import Part, Readable, is_packed, unpacked

AR_MAGIC = b"!<arch>\n"
RPM_MAGIC = b"\xed\xab\xee\xdb"
CPIO_MAGICS = (b"070701", b"070702")
_RPM_LEAD = 96
_RPM_HEADER = b"\x8e\xad\xe8\x01"
_AR_HEADER = 60
_CPIO_HEADER = 110
_MAX_NAME = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """A regular file in an archive; `content` is good until the next one is asked for."""

    name: str
    size: int
    content: Readable


def is_deb(head: bytes) -> bool:
    return head.startswith(AR_MAGIC + b"debian-binary")


def is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def entries_of_tar(stream: Readable, where: str) -> Iterator[Entry]:
    """Links are not followed and nothing is extracted by name, but an archive that tries to climb out is refused."""
    links = files = 0
    try:
        with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|") as archive:
            for member in archive:
                if ".." in PurePosixPath(member.name).parts:
                    raise BadInput(where, f"refused: its member {member.name} leads out of the archive")
                links += member.issym() or member.islnk()
                if member.isreg() and (content := archive.extractfile(member)):
                    files += 1
                    yield Entry(member.name, member.size, cast(Readable, content))
                # tarfile keeps every member it has seen: of a package with thousands that adds up.
                archive.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BadInput(where, f"damaged tar archive: {error}") from error
    if links and not files:
        raise BadInput(where, "its tar archive holds only links, which are not followed")


def entries_of_deb(file: BinaryIO, where: str, limit: int) -> Iterator[Entry]:
    """What a Debian package would install: an ar archive with a tar in it (deb(5))."""
    file.seek(len(AR_MAGIC))
    while header := file.read(_AR_HEADER):
        if len(header) < _AR_HEADER or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise BadInput(where, "damaged Debian package: its ar headers are corrupt or cut off")
        name, size, start = header[:16].strip().rstrip(b"/"), int(header[48:58]), file.tell()
        if name.startswith(b"data.tar"):
            part = cast(BinaryIO, Part(file, size))
            stream = cast(Readable, part) if name == b"data.tar" else unpacked(part, where, limit)
            yield from entries_of_tar(stream, where)
            return
        file.seek(start + size + size % 2)
    raise BadInput(where, "damaged Debian package: it has no data.tar")


def entries_of_rpm(file: BinaryIO, where: str, limit: int) -> Iterator[Entry]:
    """What an RPM package would install: lead, two headers, then a packed cpio archive."""
    file.seek(_RPM_LEAD)
    for aligned in (True, False):
        header = file.read(16)
        if len(header) < 16 or header[:4] != _RPM_HEADER:
            raise BadInput(where, "damaged RPM package: its headers are corrupt or cut off")
        count, size = struct.unpack(">II", header[8:])
        end = file.tell() + 16 * count + size
        # Only the signature is padded.
        file.seek(end + 7 & ~7 if aligned else end)
    payload = file.tell()
    head = file.read(6)
    file.seek(payload)
    stream = unpacked(file, where, limit) if is_packed(head) or head not in CPIO_MAGICS else file
    yield from entries_of_cpio(stream, where)


def entries_of_cpio(stream: Readable, where: str) -> Iterator[Entry]:
    """The "newc" form of cpio(5), which RPM uses for files up to 4 GiB."""
    while True:
        header = _exactly(stream, _CPIO_HEADER, where)
        try:
            words = [int(header[at:at + 8], 16) for at in range(6, _CPIO_HEADER, 8)]
        except ValueError:
            words = []
        if header[:6] not in CPIO_MAGICS or not words or not 0 < words[11] <= _MAX_NAME:
            raise BadInput(where, "damaged cpio archive, or one of files over 4 GiB, which is not supported")
        mode, size, name_size = words[1], words[6], words[11]
        name = _exactly(stream, name_size + -(_CPIO_HEADER + name_size) % 4, where)[:name_size - 1]
        if name == b"TRAILER!!!":
            return
        if b".." in name.split(b"/"):
            raise BadInput(where, f"refused: its member {name.decode('latin-1')} leads out of the archive")
        content = _Slice(stream, size, where)
        if mode & 0o170000 == 0o100000 and size:
            yield Entry(name.decode("latin-1"), size, content)
        while content.read(1 << 20):
            pass
        _exactly(stream, -size % 4, where)


class _Slice:
    """The next `size` bytes of a stream."""

    def __init__(self, stream: Readable, size: int, where: str) -> None:
        self._stream, self._left, self._where = stream, size, where

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._stream.read(wanted) if wanted else b""
        if wanted and not data:
            raise BadInput(self._where, "damaged cpio archive: a member is cut off")
        self._left -= len(data)
        return data


def _exactly(stream: Readable, size: int, where: str) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise BadInput(where, "damaged cpio archive: it ends too early")
        data += more
    return data
