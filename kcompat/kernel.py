"""Which kernel this is: the identity that offsets are remembered under."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kcompat.elf import Elf, open_file
from kcompat.errors import BadInput

NOTES = Path("/sys/kernel/notes")
_NT_GNU_BUILD_ID = 3
_SHT_PROGBITS, _SHT_NOTE = 1, 7
_SHF_ALLOC = 2
# What /proc/version shows too; its first group is the release.
BANNER = re.compile(rb"Linux version (\d+\.\d\S*) \([^\0\n]*")
_BTF_MAGICS = (b"\x9f\xeb", b"\xeb\x9f")

# (e_machine, bits, byte order) of elf(5) -> what uname(2) calls it.
_MACHINES = {
    (3, 32, "<"): "i686", (8, 64, "<"): "mips64", (8, 64, ">"): "mips64", (20, 32, ">"): "ppc",
    (21, 64, "<"): "ppc64le", (21, 64, ">"): "ppc64", (22, 64, ">"): "s390x", (40, 32, "<"): "armv7l",
    (62, 64, "<"): "x86_64", (183, 64, "<"): "aarch64", (243, 64, "<"): "riscv64", (258, 64, "<"): "loongarch64",
}
_SPELLINGS = {name: name for name in _MACHINES.values()} | {"arm64": "aarch64", "amd64": "x86_64"}


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

    @classmethod
    def from_vmlinux(cls, path: Path) -> Kernel:
        """The kernel of an uncompressed ``vmlinux``: build-id note, ``linux_banner`` and the ELF header's machine.

        Raises BadInput when the file is no kernel, or only its separated debug sections.
        """
        data = open_file(path)
        elf = Elf(data, path)
        machine = _MACHINES.get((elf.machine, elf.bits, elf.byte_order))
        if machine is None:
            raise BadInput(path, f"{elf.bits}-bit ELF machine {elf.machine} is not known")
        notes = (build_id_of_notes(elf.read(s), elf.byte_order) for s in elf.sections if s.kind == _SHT_NOTE)
        build_id = next(filter(None, notes), None)
        # Only what is loaded: .debug_str and .comment may hold banners of other kernels.
        loaded = (s for s in elf.sections if s.kind == _SHT_PROGBITS and s.flags & _SHF_ALLOC)
        banners = [m for s in loaded for m in BANNER.finditer(data, s.offset, s.offset + s.size)]
        if not banners:
            raise BadInput(path, "no kernel: it holds no \"Linux version\" banner")
        # Since 6.1 an overridden one without build number ("# SMP") is left in vmlinux (kernel commit 2df8220cc511).
        banner = next((m for m in banners if re.search(rb" #\d", m[0])), banners[0])
        return cls(build_id, banner[1].decode("latin-1"), banner[0].decode("latin-1").strip(), machine)

    @classmethod
    def from_btf(cls, path: Path) -> Kernel:
        """The kernel of a BTF file. Raw BTF carries no identity, so its build-id is ``btf-`` and its SHA-256.

        Release and machine come from a name as BTFHub gives (``4.19.90-24.4.aarch64.btf``, or ``RELEASE.btf`` in a
        directory of the machine's name), and are empty where it does not tell. An ELF file has its own identity.
        """
        data = open_file(path)
        if not isinstance(data, bytes):
            return cls.from_vmlinux(path)
        if data[:2] not in _BTF_MAGICS:
            raise BadInput(path, f"not BTF: magic {data[:2].hex()}")
        name = as_text(path.name)
        release = name.removesuffix(".btf") if re.match(r"\d+\.\d+", name) else ""
        spelled = (*re.split(r"[.-]", release)[-1:], path.absolute().parent.name)
        machine = next((_SPELLINGS[word] for word in spelled if word in _SPELLINGS), "")
        return cls("btf-" + hashlib.sha256(data).hexdigest(), release, "", machine)

    def as_json(self) -> dict[str, str | None]:
        return {"build_id": self.build_id, "release": self.release, "version": self.version, "machine": self.machine}


def is_module(name: str) -> bool:
    """Whether it was loaded as a module, and is no part of the kernel itself."""
    return Path(f"/sys/module/{name}/initstate").exists()


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


def as_text(name: str) -> str:
    """A file's name as text that may be kept and printed: it can be bytes that are no UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def _read_build_id(path: Path) -> str | None:
    try:
        return build_id_of_notes(path.read_bytes())
    except OSError:
        return None


def _module_build_ids(names: tuple[str, ...]) -> dict[str, str]:
    paths = {name: Path(f"/sys/module/{name}/notes/.note.gnu.build-id") for name in names}
    return {name: build_id for name, path in paths.items() if (build_id := _read_build_id(path))}
