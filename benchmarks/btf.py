"""The catalogue from BTF: ours beside bpftool and beside libbpf through a small C program, on the same file.

``python -m benchmarks.btf [BTF]``; by default the running kernel's.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure, report
from benchmarks.measure import Line, Repetitions, Result, Target, of
from kcompat.errors import KcompatError, Missing
from kcompat.fields import CATALOGUE

TITLE = "Offsets from the BTF of a kernel"
RUNNING = Path("/sys/kernel/btf/vmlinux")
_OURS_MS = 60
_LIBBPF = Path(__file__).with_name("btf_libbpf.c")


def run(repetitions: Repetitions, path: Path = RUNNING) -> Result:
    """Raises Missing without BTF, gcc, libbpf-dev or bpftool."""
    before = measure.load()
    if not path.exists():
        raise Missing(f"{path} does not exist: BTF is not measured")
    ours = repetitions.of(lambda: _ours_in_a_process(path))
    with tempfile.TemporaryDirectory(prefix="kcompat-bench-") as directory:
        asked = libbpf_asked(path, Path(directory) / "libbpf")
        libbpf = repetitions.of(lambda: measure.timed(asked))
    dumped = repetitions.of(lambda: measure.timed(["bpftool", "-j", "btf", "dump", "file", str(path)])[0])
    lines = list(_lines(ours, [seconds for seconds, _ in libbpf], dumped, libbpf_places(libbpf[0][1].decode())))
    remark = f"{path}, {path.stat().st_size / 1e6:.1f} MB; bpftool and libbpf are C, with no interpreter to start"
    return Result("btf", TITLE, tuple(lines), (remark,), (before, measure.load()), repetitions.begun,
                  repetitions.busy)


def _lines(ours: list[dict[str, Any]], libbpf: list[float], dumped: list[float],
           theirs: Mapping[str, int]) -> Iterator[Line]:
    places: dict[str, int] = ours[0]["places"]
    unequal = sorted(name for name in places.keys() | theirs.keys() if places.get(name) != theirs.get(name))
    told = f"unequal to libbpf: {', '.join(unequal)}" if unequal else "equal to libbpf in every one"
    yield of("ours: opening, reading, answering", (r["seconds"] for r in ours), target=Target(_OURS_MS),
             note=f"{len(places)} fields, {told}; {measure.cpu(ours)}")
    yield of("ours: imports", (r["imports_s"] for r in ours))
    yield of("ours: whole process", (r["process_s"] for r in ours))
    yield of("ours: peak memory", (r["peak_mb"] for r in ours), unit="MB")
    yield of("libbpf: whole process", libbpf, note=f"{len(theirs)} fields; btf__parse, btf__find_by_name_kind")
    yield of("bpftool -j btf dump: whole process", dumped, note="all types as JSON, not yet read by anybody")


def _ours_in_a_process(path: Path) -> dict[str, Any]:
    seconds, said = measure.timed([sys.executable, "-m", "benchmarks.btf", "once", str(path)])
    found: dict[str, Any] = json.loads(said)
    return found | {"process_s": seconds}


def _once(path: Path) -> dict[str, Any]:
    """The first thing a fresh interpreter does; times in seconds."""
    clock = time.perf_counter()
    from kcompat.btf import BtfResolver
    from kcompat.kernel import Kernel

    imports_s = time.perf_counter() - clock
    clock, cpu = time.perf_counter(), time.process_time()
    answers = list(BtfResolver(path).resolve(Kernel("", "", "", ""), CATALOGUE))
    seconds, cpu_s = time.perf_counter() - clock, time.process_time() - cpu
    return {"imports_s": imports_s, "seconds": seconds, "cpu_s": cpu_s,
            "peak_mb": _peak_mb(),
            "places": {a.field.name: a.offset for a in answers if a.offset is not None}}


def _peak_mb() -> float:
    """Not ru_maxrss: that one remembers the process that forked us. proc_pid_status(5)."""
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(told[1]) / 1024 if told else 0.0


def libbpf_asked(path: Path, program: Path) -> list[str]:
    """The command that asks libbpf for the catalogue; the program is built if it is not there."""
    if not program.exists():
        measure.timed(["gcc", "-O2", "-o", str(program), str(_LIBBPF), "-lbpf"])
    return [str(program), str(path), *(f"{f.struct}.{p}" for f in CATALOGUE for p in f.paths)]


def libbpf_places(printed: str) -> dict[str, int]:
    """Each field's first path that is there, from ``struct.path offset`` lines; -1 is not there."""
    told = {path: int(offset) for path, offset in map(str.split, printed.splitlines())}
    places: dict[str, int] = {}
    for field in CATALOGUE:
        for path in field.paths:
            if (offset := told[f"{field.struct}.{path}"]) >= 0:
                places.setdefault(field.name, offset)
    return places


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["once"]:
        print(json.dumps(_once(Path(arguments[1]))))
        return
    try:
        result = run(Repetitions(15, 3.0), *map(Path, arguments[:1]))
    except KcompatError as error:
        sys.exit(f"benchmarks.btf: {error}")
    print(report.text([result]), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
