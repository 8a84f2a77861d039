"""What is damaged by benchmarks/fuzz.py, and who reads the same damaged bytes beside us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks import measure
from benchmarks.btf import libbpf_asked, libbpf_places
from benchmarks.measure import REPOSITORY
from kcompat.btf import RUNNING, BtfResolver
from kcompat.btf_sections import sections
from kcompat.dwarf import DwarfResolver
from kcompat.elf import Elf, open_file
from kcompat.engine import Resolver
from kcompat.errors import KcompatError
from kcompat.fields import CATALOGUE, structs
from kcompat.kernel import Kernel
from kcompat.offsets import State
from offset_db.exchange_btf import render
from offset_db.rows import Remembered, Stored

_READ = (".debug_info", ".debug_abbrev", ".debug_str", ".debug_types", ".rela.debug_info", ".debug_line_str")
_KERNEL = Kernel("", "", "", "")


@dataclass(frozen=True, slots=True)
class Target:
    """A whole file, the parts of it that are damaged, our reader and the other."""

    path: Path
    parts: tuple[range, ...]
    resolver: Callable[[Path], Resolver]
    rival: str

    @contextmanager
    def damaged(self, flips: Mapping[int, int]) -> Iterator[Path]:
        """The file with other bytes at these places; whole again afterwards."""
        with self.path.open("r+b", buffering=0) as file:
            whole = {at: os.pread(file.fileno(), 1, at) for at in flips}
            try:
                for at, byte in flips.items():
                    os.pwrite(file.fileno(), bytes((byte,)), at)
                yield self.path
            finally:
                for at, before in whole.items():
                    os.pwrite(file.fileno(), before, at)

    def ours(self, path: Path) -> dict[str, int]:
        """What we claim to know; bitfields are left out, which the other readers do not place."""
        answers = self.resolver(path).resolve(_KERNEL, CATALOGUE)
        return {a.field.name: a.offset for a in answers
                if a.state is State.KNOWN and a.offset is not None and a.bit_size is None}


class Rivals:
    """The other readers, in processes of their own: what damages us may damage them."""

    def __init__(self, directory: Path) -> None:
        self._libbpf = directory / "btf-libbpf"
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._end()

    def places(self, target: Target, path: Path) -> Mapping[str, int] | None:
        """Field -> offset; None where the other does not read the file at all."""
        return self._of_libbpf(path) if target.rival == "libbpf" else self._of_drgn(path)

    def _of_libbpf(self, path: Path) -> Mapping[str, int] | None:
        asked = libbpf_asked(path, self._libbpf)
        try:
            _, told = measure.timed(asked)
        except KcompatError:
            return None
        return libbpf_places(told.decode(errors="replace"))

    def _of_drgn(self, path: Path) -> Mapping[str, int] | None:
        """drgn is asked by a process that stays, for it takes long to import; it may die of a file."""
        if self._server is None:
            command = [sys.executable, "-m", "benchmarks.fuzz_targets"]
            self._server = subprocess.Popen(command, cwd=REPOSITORY, text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._server.stdin and self._server.stdout
        try:
            self._server.stdin.write(f"{path}\n")
            self._server.stdin.flush()
            line = self._server.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._end()
            return None
        found: dict[str, int] | None = json.loads(line)
        return found

    def _end(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
            self._server = None


def _serve_drgn() -> None:
    """A path a line in, the places a line out; null where drgn reads nothing."""
    from benchmarks.dwarf_rivals import PLACES

    for line in sys.stdin:
        try:
            told: Mapping[str, int] | None = PLACES["drgn"](Path(line.strip()))
        except Exception:
            told = None
        print(json.dumps(told), flush=True)


def _kernel_btf(directory: Path) -> Target:
    """A kernel's whole BTF: most flips hit what nobody asked for."""
    return _btf(directory / "kernel.btf", RUNNING.read_bytes())


def _small_btf(directory: Path) -> Target:
    """Nothing but structs of the catalogue: nearly every flip hits what is asked for."""
    return _btf(directory / "small.btf", _small())


def _small() -> bytes:
    """What ``kcompat db export --format btf`` makes of the running kernel."""
    answers = BtfResolver().resolve(_KERNEL, CATALOGUE)
    kernel = Kernel("", "", "", os.uname().machine)
    return render(Remembered(kernel, "", "", tuple(Stored(answer, "") for answer in answers)))


def _btf(path: Path, data: bytes) -> Target:
    path.write_bytes(data)
    found = sections(data, split=False)
    parts = tuple(range(part.start, part.stop) for part in (slice(0, 32), found.types, found.strings))
    return Target(path, parts, BtfResolver, "libbpf")


def _dwarf(directory: Path, *flags: str) -> Target:
    """The same structs as C, compiled."""
    (directory / "small.btf").write_bytes(_small())
    _, header = measure.timed(["bpftool", "btf", "dump", "file", str(directory / "small.btf"), "format", "c"])
    variables = "".join(f"struct {name} the_{name};\n" for name in structs())
    (directory / "small.c").write_text(header.decode() + variables)
    path = directory / "small.o"
    measure.timed(["gcc", "-w", *flags, str(directory / "small.c"), "-o", str(path)])
    return _elf(path)


def vmlinux(copy: Path) -> Target:
    """A real kernel's, which is damaged in place: give it a copy."""
    return _elf(copy)


def _elf(path: Path) -> Target:
    elf = Elf(open_file(path), path)
    parts = tuple(range(s.offset, s.offset + s.size) for s in elf.sections if s.name in _READ and s.size)
    return Target(path, parts, DwarfResolver, "drgn")


TARGETS: dict[str, Callable[[Path], Target]] = {
    "btf": _small_btf,
    "kernel-btf": _kernel_btf,
    "dwarf-4": lambda directory: _dwarf(directory, "-gdwarf-4", "-c"),
    "dwarf-5": lambda directory: _dwarf(directory, "-gdwarf-5", "-c"),
    "dwarf-5-types": lambda directory: _dwarf(directory, "-gdwarf-5", "-fdebug-types-section", "-shared", "-fPIC"),
}


if __name__ == "__main__":
    _serve_drgn()
