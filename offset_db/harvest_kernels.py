"""From an ELF file, a BTF blob or a bare image to the kernel it is of, and what BTF and DWARF say of its fields."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kcompat.btf import RUNNING, BtfResolver, load
from kcompat.dwarf import DwarfResolver
from kcompat.elf import Elf, open_file
from kcompat.engine import Resolver
from kcompat.errors import BadInput
from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel, as_text, build_id_of_notes
from kcompat.offsets import Offset, State
from kcompat.shuffled import SHUFFLED, UNTOLD
from offset_db.exchange_names import named_kernel
from offset_db.harvest_images import banner_within, build_id_within, is_arm64_image
from offset_db.harvest_report import Found

# Fields of structs that modules own, and those modules.
OWNED = frozenset(f for f in CATALOGUE if f.module)
OWNERS = frozenset(f.module for f in OWNED)
_ET_REL = 1
_SHT_NOTE = 7
_MAX_BTF = 256 << 20
_DWARF = (".debug_info", ".zdebug_info")
_MACHINES = {(62, 64): "x86_64", (183, 64): "aarch64"}
# A member of struct pt_regs that only one machine has.
_REGISTERS = {"orig_ax": "x86_64", "pstate": "aarch64"}
_RELEASE = re.compile(r"(?:vmlinu[xz]-|Image-)?(\d+\.\d+[.-].*?)(?:\.(?:btf|debug|gz|xz|zst|tar))*")


class Nothing(BadInput):
    """A sound file with nothing in it that is wanted."""


def is_module(head: bytes) -> bool:
    """Whether these are the first bytes of a relocatable ELF file, as modules are and kernels are not."""
    return head[:4] == b"\x7fELF" and struct.unpack_from("<H" if head[5:6] == b"\1" else ">H", head, 16)[0] == _ET_REL


def found_in_elf(path: Path, name: Path, faults: list[str]) -> Found:
    """The kernel of an ELF file, from its BTF and from its DWARF; what is wrong with one of them is a fault more.

    `name` is what the file was called where `path` is a copy. Raises Nothing for any other ELF file, BadInput when
    there is no sound source in it.
    """
    data = open_file(path)
    elf = Elf(data, path)
    sections = {s.name for s in elf.sections if s.size}
    if is_module(data[:64]):
        if ".debug_info.dwo" in sections:
            raise BadInput(path, "split DWARF (.dwo): it cannot be read without its skeleton")
        return _found_in_module(elf, path, name)
    kernel = _kernel_of_elf(elf, path, name)
    resolvers: list[Resolver] = []
    if ".BTF" in sections:
        resolvers.append(BtfResolver(path))
    if sections.intersection(_DWARF):
        resolvers.append(DwarfResolver(path))
    if not resolvers:
        raise Nothing(path, "a kernel without BTF and without DWARF in it")
    offsets: list[Offset] = []
    broken: list[BadInput] = []
    for resolver in resolvers:
        try:
            offsets += _told(resolver.resolve(kernel, CATALOGUE), path)
        except BadInput as error:
            broken.append(error)
    if broken and not offsets:
        raise broken[0]
    faults += [error.fault for error in broken]
    return _found(kernel, offsets, path)


def _found_in_module(elf: Elf, path: Path, name: Path) -> Found:
    """What a module's DWARF says of the structs it owns, for whatever kernel of that release has that build loaded."""
    told = _modinfo(elf)
    module = told.get("name") or module_of(name)
    owned = [f for f in CATALOGUE if f.module == module]
    if not owned:
        raise Nothing(path, "nothing wanted in it: an object file, or a module that owns none of the structs")
    if not any(elf.find(section) for section in _DWARF):
        raise Nothing(path, f"the module {module} without DWARF in it")
    release, build_id = told.get("vermagic", "").partition(" ")[0] or _release(name), _build_id(elf)
    machine = _MACHINES.get((elf.machine, elf.bits))
    if not (release and build_id and machine):
        raise BadInput(path, f"the module {module} of no known kernel: it takes a build-id, x86_64 or arm64, and the "
                             "kernel's release in .modinfo or in its path")
    kernel = replace(named_kernel(release, "", machine), modules={module: build_id})
    return _found(kernel, _told(DwarfResolver(path).resolve(kernel, owned), path), path)


def module_of(name: Path) -> str:
    """What the kernel calls the module whose file has that name, with whatever was put behind it."""
    return name.name.partition(".")[0].replace("-", "_")


def _modinfo(elf: Elf) -> dict[str, str]:
    """``key=value`` of a module; empty where its debug information was kept apart."""
    section = elf.find(".modinfo")
    words = elf.read(section).decode("latin-1").split("\0") if section else []
    return {key: value for key, sign, value in (word.partition("=") for word in words) if sign}


def found_in_btf(path: Path, name: Path) -> Found:
    """The kernel of a raw BTF file; split BTF, a module's, is read with the kernel's that lies beside it."""
    size = path.stat().st_size
    if size > _MAX_BTF:
        raise BadInput(path, f"BTF of {size >> 20} MiB; a kernel's has a few")
    if RUNNING.exists() and path.samefile(RUNNING):
        kernel = Kernel.running()
    elif _is_split(path):
        return _found_in_split(path)
    else:
        kernel = _named(Kernel.from_btf(path), path, name)
    return _found(kernel, _told(BtfResolver(path).resolve(kernel, CATALOGUE), path), path)


def found_in_bare(btf: Path, image: bytes, name: Path) -> Found:
    """The kernel of a boot image that is no ELF file, as arm64's are, whose BTF lies at `btf`."""
    told = banner_within(image)
    kernel = _named(Kernel.from_btf(btf), btf, name)
    if told is not None:
        kernel = replace(kernel, release=told[0], version=told[1])
    machine = "aarch64" if is_arm64_image(image) else kernel.machine
    kernel = replace(kernel, build_id=build_id_within(image) or kernel.build_id, machine=machine)
    return _found(kernel, _told(BtfResolver(btf).resolve(kernel, CATALOGUE), btf), btf)


def _kernel_of_elf(elf: Elf, path: Path, name: Path) -> Kernel:
    try:
        return Kernel.from_vmlinux(path)
    except BadInput:
        # Debug information kept apart has the kernel's sections and its notes, but not the banner's bytes.
        build_id = _build_id(elf)
        machine = _MACHINES.get((elf.machine, elf.bits))
        if build_id is None or machine is None or elf.find("__ksymtab") is None:
            raise Nothing(path, "an ELF file, but no kernel") from None
        return Kernel(build_id, _release(name), "", machine)


def _build_id(elf: Elf) -> str | None:
    notes = (build_id_of_notes(elf.read(s), elf.byte_order) for s in elf.sections if s.kind == _SHT_NOTE)
    return next(filter(None, notes), None)


def _found_in_split(path: Path) -> Found:
    base = path.with_name("vmlinux")
    if not base.is_file():
        raise BadInput(path, "split BTF: it needs its base, the kernel's own BTF, as vmlinux beside it")
    kernel = Kernel.running() if base == RUNNING else Kernel.from_btf(base)
    owned = [f for f in CATALOGUE if f.module == path.name]
    offsets = _told(BtfResolver(path, base).resolve(kernel, owned or CATALOGUE[:1]), path)
    if not owned:
        raise Nothing(path, f"nothing wanted in it: the catalogue has no field of module {path.name}")
    return _found(kernel, offsets, path)


def _is_split(path: Path) -> bool:
    """Whether the string section goes on where another left off: a whole one starts with an empty string.

    One without strings of its own has all of its names in its base.
    """
    with path.open("rb") as file:
        head = file.read(24)
        order = "<" if head[:2] == b"\x9f\xeb" else ">"
        if len(head) < 24:
            return False
        header, _, _, strings, size = struct.unpack(order + "4x5I", head)
        file.seek(header + strings)
        return size == 0 or file.read(1) not in (b"\0", b"")


def _named(kernel: Kernel, path: Path, name: Path) -> Kernel:
    """With the release its name tells, and the machine whose registers the BTF knows, where nothing better did."""
    release = kernel.release or _release(name)
    return replace(kernel, release=release, machine=kernel.machine or _machine(path))


def _release(name: Path) -> str:
    return next((m[1] for part in map(as_text, reversed(name.parts)) if (m := _RELEASE.fullmatch(part))), "")


def _machine(path: Path) -> str:
    found = load(path).structs(["pt_regs", "user_pt_regs"])
    members = {m.name for structs in found.values() for s in structs for m in s.members or ()}
    return next((machine for register, machine in _REGISTERS.items() if register in members), "")


def _told(offsets: Iterable[Offset], path: Path) -> list[Offset]:
    """What says something: a source without a struct, as small BTF files are, has nothing to be remembered by.

    Raises BadInput where the structs may have been shuffled.
    """
    offsets = list(offsets)
    if offsets and offsets[0].reason in (SHUFFLED, UNTOLD):
        raise BadInput(path, offsets[0].reason)
    return [o for o in offsets if o.state is not State.UNKNOWN or o.candidates]


def _found(kernel: Kernel, offsets: Iterable[Offset], path: Path) -> Found:
    told = tuple(offsets)
    if not told:
        raise Nothing(path, f"nothing wanted in it: it has none of the {len({f.struct for f in CATALOGUE})} structs")
    return Found(kernel, told)
