"""Offsets from BTF: the running kernel's, a file of BTFHub's, a module's, or the .BTF section of an ELF file."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path

from kcompat import shuffled
from kcompat.btf_types import Btf
from kcompat.elf import MAGIC, Data, Elf, is_elf, open_file
from kcompat.errors import BadInput, Missing
from kcompat.fields import Field, structs
from kcompat.kernel import Kernel
from kcompat.layout import Struct, agreed
from kcompat.offsets import Offset

RUNNING = Path("/sys/kernel/btf/vmlinux")


def load(path: Path, base: Btf | None = None) -> Btf:
    """The BTF of a raw file or an ELF file; `base` is the kernel's when `path` is a module's.

    An out-of-tree module brings a distilled base of its own, used when none is given.
    Raises BadInput for anything that is not whole BTF, Missing when there is no such file.
    """
    data = _mapped() if path == RUNNING else None
    data = data or open_file(path)
    if data[:len(MAGIC)] != MAGIC:
        return Btf(data, path, base)
    elf = Elf(data, path)
    section = elf.find(".BTF")
    if section is None:
        raise BadInput(path, "an ELF file without a .BTF section")
    if base is None and (distilled := elf.find(".BTF.base")):
        base = Btf(elf.read(distilled), path)
    return Btf(elf.read(section), path, base)


class BtfResolver:
    """Answers from BTF. Structs of modules are looked up in the BTF files that lie beside the kernel's."""

    name = "btf"

    def __init__(self, path: Path = RUNNING, base: Path | None = None) -> None:
        """`base` is the kernel's BTF when `path` is a module's."""
        self._path, self._base = path, base

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterable[Offset]:
        """Raises Missing when the file does not exist, BadInput when it is not BTF.

        BTF that somebody made for a kernel with shuffled structs has the order of its source, as the DWARF it is of.
        """
        if not self._path.exists():
            raise Missing(_advice(self._path))
        if is_elf(self._path):
            data = open_file(self._path)
            if shuffled.by_gcc(Elf(data, self._path), data):
                return [Offset.unknown(f, self.name, shuffled.SHUFFLED) for f in wanted]
        btf = load(self._path, load(self._base) if self._base else None)
        found = btf.structs(structs(wanted))
        for module in self._modules(wanted, found):
            owned = [f for f in wanted if f.module == module]
            found |= load(self._path.with_name(module), btf).structs(structs(owned))
        return [agreed(f, found.get(f.struct, ()), self.name) for f in wanted]

    def _modules(self, wanted: Sequence[Field], found: dict[str, tuple[Struct, ...]]) -> list[str]:
        """The modules that own a wanted struct the kernel's own BTF does not define, and have BTF."""
        undefined = {f.module for f in wanted
                     if f.module and not any(s.members is not None for s in found.get(f.struct, ()))}
        return sorted(m for m in undefined if m and self._path.with_name(m).exists())


def _mapped() -> Data | None:
    """The running kernel's BTF where the kernel has it, which can be mapped since 6.16; reading copies page by page."""
    try:
        with RUNNING.open("rb", buffering=0) as file:
            return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return None


def _advice(path: Path) -> str:
    if path == RUNNING:
        return (f"{path} does not exist: this kernel was built without CONFIG_DEBUG_INFO_BTF; give a BTF or debug "
                "file of the same build, or let kcompat guess")
    return f"{path} does not exist: give a raw BTF file or an ELF file with a .BTF section"
