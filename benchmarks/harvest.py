"""A thousand kernels' BTF into the database: how long it takes, and what a second worker brings.

``python -m benchmarks.harvest [FILES]``, or with the others ``python -m benchmarks harvest``
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Repetitions, Result, Target, of
from kcompat.btf import RUNNING
from kcompat.btf_index import STRUCT, kind_of, vlen_of
from kcompat.errors import KcompatError, Missing
from kcompat.fields import find
from offset_db.db import Database

TITLE = "A thousand BTF files into the database, and what a second worker brings"
_FILES = 1000
_WHOLE_S, _SCALING = 60, 1.7
_PATIENCE_S = 900.0
# Each begins with the one before it, so padding in one moves what follows in all the later ones.
_CHAIN = ("sock_common", "sock", "inet_sock", "inet_connection_sock", "tcp_sock")
# 32-bit words after the first three of a type, besides three for each member: those of the kinds that differ.
_EXTRA_WORDS = {1: 1, 3: 3, 14: 1, 17: 1}
_WORDS_EACH = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}


@dataclass(frozen=True, slots=True)
class Template:
    """Real BTF, and where in it the structs to be varied lie: name -> words from the start of the type section."""

    data: bytes
    types_at: int
    words: array[int]
    structs: Mapping[str, int]

    def varied(self, number: int) -> bytes:
        """The same kernel with padding before the later members of those structs: another one for each of 1024."""
        words, grown = array("I", self.words), 0
        for place, name in enumerate(_CHAIN):
            at = self.structs[name]
            count, own = vlen_of(words[at + 1]), number >> 2 * place & 3
            for member in range(count):
                # Inner structs have grown as much, and the first member, the inner struct itself, stays.
                moved = (grown if member else 0) + (own if member > count // 2 else 0)
                words[at + 5 + 3 * member] += 64 * moved
            grown += own
            words[at + 2] += 8 * grown
        body = words.tobytes()
        return self.data[:self.types_at] + body + self.data[self.types_at + len(body):]


def template(data: bytes) -> Template:
    header, type_at, type_size, string_at, _ = struct.unpack_from("<5I", data, 4)
    words = array("I", data[header + type_at:header + type_at + type_size])
    strings = data[header + string_at:]
    names = {strings.index(b"\0" + name.encode() + b"\0") + 1: name for name in _CHAIN}
    found = {names[words[at]]: at for at in _starts(words) if words[at] in names and kind_of(words[at + 1]) == STRUCT}
    return Template(data, header + type_at, words, found)


def _starts(words: array[int]) -> Iterator[int]:
    at = 0
    while at < len(words):
        yield at
        kind = kind_of(words[at + 1])
        at += 3 + _EXTRA_WORDS.get(kind, 0) + _WORDS_EACH.get(kind, 0) * vlen_of(words[at + 1])


def run(repetitions: Repetitions, files: int = _FILES) -> Result:
    """Raises Missing without BTF to vary. Every run is of the whole command, with its workers' start in it."""
    if not RUNNING.exists():
        raise Missing(f"{RUNNING} does not exist: there is no real BTF to vary")
    before = measure.load()
    with tempfile.TemporaryDirectory(prefix="kcompat-bench-") as name:
        directory = Path(name)
        source = template(RUNNING.read_bytes())
        (directory / "btf").mkdir()
        for number in range(files):
            (directory / "btf" / f"6.18.{number}.x86_64.btf").write_bytes(source.varied(number))
        one, two = _harvest(directory, 1), _harvest(directory, 2)
        _check(directory / "2.db", files)
    lines = (
        of(f"{files} BTF files, 2 workers", [two.seconds], unit="s", target=Target(_WHOLE_S), note=two.note(files)),
        of(f"{files} BTF files, 1 worker", [one.seconds], unit="s", note=one.note(files)),
        of("1 to 2 workers", [one.seconds / two.seconds], unit="x", target=Target(_SCALING, at_least=True)),
    )
    return Result("harvest", TITLE, lines, (), (before, measure.load()), repetitions.begun, repetitions.busy)


@dataclass(frozen=True, slots=True)
class _Run:
    """One harvest: wall time, and what the processors spent on it in all its processes."""

    seconds: float
    cpu_s: float

    def note(self, files: int) -> str:
        return f"{files / self.seconds:.0f} files/s; processor {1000 * self.cpu_s / files:.0f} ms a file, all processes"


def _harvest(directory: Path, jobs: int) -> _Run:
    """Raises KcompatError unless every file was harvested."""
    command = [sys.executable, "-c", "from kcompat.cli import main; main()", "--db", str(directory / f"{jobs}.db"),
               "harvest", str(directory / "btf"), "--jobs", str(jobs), "--json"]
    before_s = measure.children_s()
    seconds, out = measure.timed(command, _PATIENCE_S)
    spent_s = measure.children_s() - before_s
    told = json.loads(out)
    if told["failed"] or told["skipped"]:
        raise KcompatError(f"harvest: {len(told['failed'])} files failed, {len(told['skipped'])} were skipped")
    return _Run(seconds, spent_s)


def _check(path: Path, files: int) -> None:
    """That as many kernels came out as different files went in, each with its own layout."""
    with Database.open(path) as db:
        kernels = db.kernels()
        field = find("tcp_sock.total_retrans")
        places = {s.offset.offset for k in kernels for s in db.offsets(k) if s.offset.field == field}
    if len(kernels) != files or (files > 64 and len(places) < 8):
        raise KcompatError(f"harvest: {files} files gave {len(kernels)} kernels in {len(places)} layouts")


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else _FILES
    result = run(Repetitions(1, 0), files)
    for line in result.lines:
        print(*(cell for cell in line.cells() if cell), sep="  ")
    print(f"load before {result.load[0]:.1f}, after {result.load[1]:.1f}")


if __name__ == "__main__":
    main()
