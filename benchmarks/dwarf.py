"""The catalogue from a kernel's DWARF: ours beside pahole, drgn and plain pyelftools, on the same file.

``python -m benchmarks.dwarf [VMLINUX]``; by default a vmlinux with debug information that is installed, or unpacked
below $KCOMPAT_CACHE, ~/.cache/kcompat or /tmp/kc/dbg.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks import dwarf_rivals, measure, report
from benchmarks.dwarf_rivals import Run
from benchmarks.measure import Line, Repetitions, Result, Target, of
from kcompat.btf import BtfResolver
from kcompat.errors import KcompatError, Missing
from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel
from kcompat.offsets import State

TITLE = "Offsets from the DWARF of a kernel"
_OURS_S, _OURS_MB = 2.0, 300
_TIMES_PAHOLE, _TIMES_DRGN, _SHARE_OF_DRGN = 8, 2, 0.5
_PLAIN_LIMIT_S = 60.0


def run(repetitions: Repetitions, path: Path | None = None) -> Result:
    """Raises Missing when there is no vmlinux to measure on."""
    before = measure.load()
    vmlinux = path or find()
    _read_once(vmlinux)
    runs = {name: repetitions.of(partial(dwarf_rivals.run, name, vmlinux)) for name in ("ours", "drgn", "pahole")}
    plain = dwarf_rivals.run_within("pyelftools", vmlinux, _PLAIN_LIMIT_S)
    places = {name: of_name[0].places for name, of_name in runs.items()} | {"BTF": _btf(vmlinux)}
    lines = [line for name, of_name in runs.items() for line in _lines(name, of_name, places)]
    lines += [*_compared(runs), _plain(plain, places["ours"])]
    remarks = (f"{vmlinux.name}, {vmlinux.stat().st_size / 1e6:.0f} MB, in the page cache; whole processes",
               *dict.fromkeys(f"{name} answers for {len(found)} of {len(CATALOGUE)} fields"
                              for name, found in places.items() if len(found) < len(CATALOGUE)))
    return Result("dwarf", TITLE, tuple(lines), remarks, (before, measure.load()), repetitions.begun,
                  repetitions.busy)


def find() -> Path:
    """The newest vmlinux of a debug package that lies about."""
    places = os.environ.get("KCOMPAT_CACHE"), Path.home() / ".cache/kcompat", "/tmp/kc/dbg"
    roots = [Path(root) for root in places if root]
    found = [path for root in roots for path in root.rglob("usr/lib/debug/boot/vmlinux-*") if path.is_file()]
    found += Path("/usr/lib/debug/boot").glob("vmlinux-*")
    if not found:
        raise Missing("no vmlinux with debug information: apt-get download linux-image-6.1.0-56-cloud-amd64-dbg, "
                      "unpack it with dpkg-deb -x into /tmp/kc/dbg, or name one: python -m benchmarks.dwarf VMLINUX")
    return max(found, key=lambda path: path.stat().st_mtime)


def _read_once(path: Path) -> None:
    """Into the page cache: the disk is not what is measured."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def _btf(vmlinux: Path) -> Mapping[str, int]:
    try:
        answers = list(BtfResolver(vmlinux).resolve(Kernel("", "", "", ""), CATALOGUE))
    except KcompatError:
        return {}
    return {a.field.name: a.offset for a in answers if a.state is State.KNOWN and a.offset is not None}


def _lines(name: str, runs: list[Run], places: Mapping[str, Mapping[str, int]]) -> list[Line]:
    ours = name == "ours"
    told = _agreement(places) if ours else f"{len(places[name])} fields"
    memory = "ours: peak memory" if ours else f"{name}: peak memory"
    return [
        of(f"{name}: whole process", (r.seconds for r in runs), target=Target(_OURS_S * 1000) if ours else None,
           note=f"{told}; {measure.cpu([{'cpu_s': r.cpu_s} for r in runs])}"),
        of(memory, (r.peak_mb for r in runs), unit="MB", target=Target(_OURS_MB) if ours else None,
           note="resident, pages of the file mapped into it included"),
    ]


def _agreement(places: Mapping[str, Mapping[str, int]]) -> str:
    """``85 fields, equal to drgn in 85``: a rival is compared in every field it answers for."""
    ours = places["ours"]
    told = []
    for name, theirs in places.items():
        if name == "ours":
            continue
        unequal = sorted(field for field in theirs if theirs[field] != ours.get(field))
        told.append(f"unequal to {name}: {', '.join(unequal)}" if unequal else f"equal to {name} in {len(theirs)}")
    return f"{len(ours)} fields, {', '.join(told)}"


def _compared(runs: Mapping[str, list[Run]]) -> list[Line]:
    """Repetition by repetition, so that a busy moment hits both sides of a ratio."""
    ours, drgn, pahole = runs["ours"], runs["drgn"], runs["pahole"]
    return [
        of("pahole's time / ours", (p.seconds / o.seconds for p, o in zip(pahole, ours, strict=True)), unit="x",
           target=Target(_TIMES_PAHOLE, at_least=True)),
        of("our time / drgn's", (o.seconds / d.seconds for o, d in zip(ours, drgn, strict=True)), unit="x",
           target=Target(_TIMES_DRGN)),
        of("our memory / drgn's", (o.peak_mb / d.peak_mb for o, d in zip(ours, drgn, strict=True)), unit="x",
           target=Target(_SHARE_OF_DRGN)),
    ]


def _plain(run: Run | None, ours: Mapping[str, int]) -> Line:
    what = "plain pyelftools: whole process"
    if run is None:
        return of(what, [_PLAIN_LIMIT_S], note=f"over {_PLAIN_LIMIT_S:.0f} s, stopped")
    told = "equal" if run.places == ours else "unequal"
    return of(what, [run.seconds], note=f"{len(run.places)} fields, {told} to ours; it stops once it has all structs")


def main() -> None:
    arguments = sys.argv[1:]
    repetitions = 5
    if arguments and (given := re.fullmatch(r"-n(\d+)", arguments[0])):
        repetitions, arguments = int(given[1]), arguments[1:]
    try:
        result = run(Repetitions(repetitions, 3.0), Path(arguments[0]) if arguments else None)
    except KcompatError as error:
        sys.exit(f"benchmarks.dwarf: {error}")
    print(report.text([result]), end="")



if __name__ == "__main__":
    main()
