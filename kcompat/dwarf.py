"""Offsets from DWARF debug information: vmlinux, a module or an object file, without reading most of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kcompat import shuffled
from kcompat.dwarf_abbreviations import AGGREGATES, Corrupt
from kcompat.dwarf_headers import Header
from kcompat.dwarf_names import Names
from kcompat.dwarf_sections import Sections
from kcompat.dwarf_types import Types, is_declaration, name_of
from kcompat.dwarf_units import Unit, Units
from kcompat.elf import Data, Elf, open_file
from kcompat.errors import BadInput, KcompatError, Missing
from kcompat.fields import Field, structs
from kcompat.kernel import Kernel
from kcompat.layout import Struct, offset_of
from kcompat.offsets import Offset

# What is walked for a name that stands nowhere a compiler would put it: a second's work, a module's every unit.
_MAX_WALKED = 2 << 20
_GNU_DWO_NAME = b"\xb0\x42"  # DW_AT_GNU_dwo_name as .debug_abbrev spells it (ULEB128)


class DwarfResolver:
    """Answers from the DWARF of one ELF file, with the first definition of each struct that is met."""

    name = "dwarf"

    def __init__(self, path: Path) -> None:
        self._path = path

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterable[Offset]:
        """Raises Missing when the file does not exist, BadInput when it holds no whole DWARF.

        Of a kernel that GCC's RANDSTRUCT plugin has shuffled nothing is known: that BTF is not made of its DWARF
        (``depends on !GCC_PLUGIN_RANDSTRUCT``, lib/Kconfig.debug) has the same reason. Clang's DWARF is right. Nor is
        anything of debug information kept apart that tells of no kernel in the order of its source.
        """
        elf, data = _opened(self._path)
        apart = shuffled.is_kept_apart(elf)
        found = _search(elf, (*structs(wanted), shuffled.TASK) if apart else structs(wanted))
        if shuffled.by_gcc(elf, data):
            return [Offset.unknown(f, self.name, shuffled.SHUFFLED) for f in wanted]
        if apart and not shuffled.is_in_order(found.get(shuffled.TASK)):
            return [Offset.unknown(f, self.name, shuffled.UNTOLD) for f in wanted]
        return [offset_of(f, found.get(f.struct), self.name) for f in wanted]


def load(path: Path, names: Iterable[str]) -> dict[str, Struct]:
    """The layouts of the structs of these names; a struct that is only declared has no members.

    Raises Missing when there is no such file, BadInput for anything that is not ELF with whole DWARF.
    """
    return _search(_opened(path)[0], names)


def _opened(path: Path) -> tuple[Elf, Data]:
    if not path.exists():
        raise Missing(f"{path} does not exist: give a vmlinux, a .ko or a .o with debug information")
    data = open_file(path)
    elf = Elf(data, path)
    _refuse_what_lies_elsewhere(elf)
    return elf, data


def _search(elf: Elf, names: Iterable[str]) -> dict[str, Struct]:
    path = elf.path
    try:
        with path.open("rb") as file:
            return _Search(Sections(elf, file.fileno())).structs(names)
    except KcompatError:
        raise
    except Corrupt as error:
        raise BadInput(path, f"corrupt DWARF: {error}") from error
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


class _Search:
    """One search of one file: what is found, what is still missing, which units were looked at."""

    def __init__(self, sections: Sections) -> None:
        self._units = Units(sections)
        self._names = Names(sections, self._units)
        self._types = Types(self._units)
        self._found: dict[str, Struct] = {}
        self._declared: set[str] = set()
        self._seen: set[Header] = set()
        self._left = _MAX_WALKED

    def structs(self, names: Iterable[str]) -> dict[str, Struct]:
        # From the last: the catalogue has a struct after those it is made of, and a unit that defines it has them all.
        missing = [*dict.fromkeys(names)][::-1]
        for name in missing:
            if name not in self._found:
                self._look(name, self._names.likely(name.encode()), missing)
        for name in missing:
            # A name seen on a declaration is where the first search expected it: this one could find no more.
            if name not in self._found and name not in self._declared:
                self._look(name, self._bounded(self._names.any(name.encode())), missing)
        if len(self._found) < len(missing):
            self._refuse_skeletons()
        return {name: Struct(name, 0, None) for name in self._declared} | self._found

    def _look(self, name: str, candidates: Iterator[Header], names: list[str]) -> None:
        for header in candidates:
            if header in self._seen:
                continue
            self._seen.add(header)
            missing = {name.encode() for name in names} - {name.encode() for name in self._found}
            if not self._take(self._units.open(header), missing):
                self._units.close(header)
            if name in self._found:
                return

    def _bounded(self, candidates: Iterator[Header]) -> Iterator[Header]:
        for header in candidates:
            if self._left <= 0:
                return
            if header not in self._seen:
                self._left -= header.end - header.start
                yield header

    def _take(self, unit: Unit, missing: set[bytes]) -> bool:
        """Builds the missing structs that this unit defines. Only the direct children of its top entry count.

        What is inside a function is not the kernel's struct of that name.
        """
        taken = False
        for at, attributes, declaration in unit.children(unit.header.entries - unit.header.start):
            if declaration.tag not in AGGREGATES:
                continue
            name = self._names.of(unit, attributes, declaration)
            if name is not None and name not in missing:
                continue
            die = unit.die(at)
            name = name_of(die)
            if name not in missing:
                continue
            if is_declaration(die):
                self._declared.add(name.decode())
            else:
                self._found.setdefault(name.decode(), self._types.struct(unit, at))
                taken = True
        return taken

    def _refuse_skeletons(self) -> None:
        if _GNU_DWO_NAME not in self._units.abbreviations and not any(
                h.shape.version == 5 and h.may_be_skeleton for known in self._units.headers.values() for h in known):
            return
        for header in (h for known in self._units.headers.values() for h in known if h.may_be_skeleton):
            top = self._units.open(header).top()
            self._units.close(header)
            for attribute in ("DW_AT_dwo_name", "DW_AT_GNU_dwo_name"):
                if attribute in top.attributes:
                    dwo = top.attributes[attribute].value
                    told = dwo.decode(errors="replace") if isinstance(dwo, bytes) else "another file"
                    raise BadInput(self._units.path, f"split DWARF: its types are in {told}")
