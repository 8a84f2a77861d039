"""The kernel's version number, where a number is the only thing that will do."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from packaging.version import Version

from kcompat.errors import BadInput, KcompatError

_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def release_version(release: str) -> Version:
    """The leading numbers of a release as a comparable version: ``5.10.0-46-cloud-amd64`` is 5.10.0.

    Vendors backport: never decide what a kernel can do from it, probe. Raises KcompatError for a release
    that does not begin with numbers.
    """
    found = _NUMBERS.match(release)
    if not found:
        raise KcompatError(f"{release!r} is not a kernel release: it does not begin with numbers")
    return Version(".".join(part or "0" for part in found.groups()))


def version_code(number: Version) -> int:
    """LINUX_VERSION_CODE of a version; the last part stops at 255 as in the kernel since 5.4.92."""
    major, minor, patch = (*number.release, 0, 0)[:3]
    return (major << 16) + (minor << 8) + min(patch, 255)


def running_version_code(release: str) -> int:
    """LINUX_VERSION_CODE the running kernel was built with.

    A release says less: Debian's ``4.9.0-6-amd64`` is 4.9.88, and before 5.0 a kprobe program loads only with
    the exact number. The kernel itself puts it in a note of its vDSO (arch/*/vdso/note.S).
    """
    return _vdso_version_code() or version_code(release_version(release))


def _vdso_version_code() -> int | None:
    try:
        maps = Path("/proc/self/maps").read_text()
        line = next(line for line in maps.splitlines() if line.endswith("[vdso]"))
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        with Path("/proc/self/mem").open("rb") as memory:
            memory.seek(start)
            image = memory.read(end - start)
    except (OSError, StopIteration):
        return None
    return vdso_note_version(image)


def vdso_note_version(image: bytes) -> int | None:
    """LINUX_VERSION_CODE in the note named "Linux", type 0, of a vDSO image; None when it has none."""
    header = struct.pack("<III", 6, 4, 0) + b"Linux\0\0\0"
    at = image.find(header)
    if at < 0 or at + len(header) + 4 > len(image):
        return None
    code: int = struct.unpack_from("<I", image, at + len(header))[0]
    if not code:
        raise BadInput("[vdso]", "its Linux note holds version 0")
    return code
