"""Which kernel this is: the identity that offsets are remembered under."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

NOTES = Path("/sys/kernel/notes")
_NT_GNU_BUILD_ID = 3


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel *build*. Distributions rebuild the same release, so the build-id is the key, not the release.

    `build_id` is the GNU build-id in hex, `version` the banner of /proc/version, `modules` the build-ids of
    the loaded modules whose structs the catalogue knows.
    """

    build_id: str | None
    release: str
    version: str
    machine: str
    modules: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The build-id, or a hash of banner and machine where the kernel shows none."""
        if self.build_id:
            return self.build_id
        return "version-" + hashlib.sha256(f"{self.version}\n{self.machine}".encode()).hexdigest()[:40]

    @classmethod
    def running(cls) -> Kernel:
        """The kernel under our feet, from uname(2), /proc/version and /sys/kernel/notes."""
        name = os.uname()
        return cls(_read_build_id(NOTES), name.release, Path("/proc/version").read_text().strip(), name.machine,
                   _module_build_ids(("nf_conntrack", "ipv6")))

    def as_json(self) -> dict[str, str | None]:
        return {"build_id": self.build_id, "release": self.release, "version": self.version, "machine": self.machine}


def build_id_of_notes(notes: bytes, byte_order: str = "<") -> str | None:
    """The GNU build-id in an ELF note section (elf(5), Nhdr), in hex; None when there is none."""
    at = 0
    while at + 12 <= len(notes):
        name_size, desc_size, kind = struct.unpack_from(byte_order + "III", notes, at)
        name_at = at + 12
        desc_at = name_at + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name_at:name_at + name_size] == b"GNU\0":
            desc = notes[desc_at:desc_at + desc_size]
            return desc.hex() if desc_size and len(desc) == desc_size else None
        at = desc_at + (desc_size + 3 & ~3)
    return None


def _read_build_id(path: Path) -> str | None:
    try:
        return build_id_of_notes(path.read_bytes())
    except OSError:
        return None


def _module_build_ids(names: tuple[str, ...]) -> dict[str, str]:
    paths = {name: Path(f"/sys/module/{name}/notes/.note.gnu.build-id") for name in names}
    return {name: build_id for name, path in paths.items() if (build_id := _read_build_id(path))}
