"""A remembered kernel, proved by an event, and BTF, beside the tools that also read BTF.

``python -m benchmarks resolve``
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.measure import Line, Repetitions, Result, Target, of
from guessers.guess import guess
from kcompat.btf import RUNNING
from kcompat.errors import KcompatError, Missing
from kcompat.fields import CATALOGUE, structs
from kcompat.kernel import Kernel
from kcompat.offsets import State
from kcompat.probe import require_bpf
from offset_db.db import Database

TITLE = "Offsets of a kernel met before, and of one with BTF"
_HIT_MS, _BTF_MS = 50, 150


def run(repetitions: Repetitions) -> Result:
    """Raises Missing or Unsupported where no guess is possible: a hit is proved by one's hooks."""
    require_bpf()
    before = measure.load()
    remarks: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kcompat-bench-") as directory:
        path = Path(directory) / "offsets.db"
        with Database.open(path) as db:
            db.record(Kernel.running(), guess().offsets.values())
        lines = [*_hits(repetitions, path), *_tolerant(remarks, partial(_btf, repetitions))]
    for name, command in _rivals().items():
        lines += _tolerant(remarks, partial(_process, name, command, repetitions))
    return Result("resolve", TITLE, tuple(lines), tuple(remarks), (before, measure.load()), repetitions.begun,
                  repetitions.busy)


def _hits(repetitions: Repetitions, path: Path) -> Iterable[Line]:
    first = path.with_name("first.db")

    def first_of_a_day() -> dict[str, Any]:
        shutil.copy(path, first)
        return measure.once("hit", str(first))

    marking = repetitions.of(first_of_a_day)
    measure.once("hit", str(path))
    runs = repetitions.fresh("hit", str(path))
    yield of("database hit, verified: whole", (r["seconds"] for r in runs), target=Target(_HIT_MS),
             note=f"{runs[0]['fields']} fields; {measure.cpu(runs)}; opening, reading, proof")
    yield of("database hit, first of a day: whole", (r["seconds"] for r in marking), target=Target(_HIT_MS),
             note=f"{measure.cpu(marking)}; it also marks the fields verified, and waits for the disk")
    yield of("database hit, verified: the proof in it", (r["verify_s"] for r in runs),
             note="hooks set, sockets made, every offset compared")
    yield of("database hit, verified: imports", (r["imports_s"] for r in runs))
    yield _command("db", repetitions, "--db", str(path))


def _btf(repetitions: Repetitions) -> Iterable[Line]:
    if not RUNNING.exists():
        raise Missing(f"{RUNNING} does not exist: BTF is not measured")
    runs = repetitions.fresh("btf")
    return [
        of("BTF, the catalogue: whole", (r["seconds"] for r in runs), target=Target(_BTF_MS),
           note=f"{runs[0]['fields']} fields of {len(structs())} structs; {measure.cpu(runs)}"),
        of("BTF, the catalogue: imports", (r["imports_s"] for r in runs)),
        _command("btf", repetitions),
    ]


def _command(source: str, repetitions: Repetitions, *options: str) -> Line:
    """What a user waits for: the interpreter, imports and output are in it.

    A field this kernel tells nobody is an answer too, and makes the exit status 1.
    """
    command = [sys.executable, "-c", "from kcompat.cli import main; main()", *options,
               "resolve", "--source", source, "--no-record", "--json"]
    runs = repetitions.of(lambda: measure.timed(command, fine=(0, 1)))
    told = min(_told(output) for _, output in runs)
    return of(f"kcompat resolve --source {source}: whole process", (seconds for seconds, _ in runs),
              note=f"{told} of {len(CATALOGUE)} fields")


def _told(output: bytes) -> int:
    """How many fields the answer tells. Raises KcompatError where it is none: too much went wrong to time it."""
    answers: list[dict[str, Any]] = json.loads(output or b"{}").get("fields", [])
    if not (told := len([a for a in answers if a["state"] != State.UNKNOWN])):
        raise KcompatError("kcompat resolve --json: no field was told")
    return told


def _process(name: str, command: Sequence[str], repetitions: Repetitions) -> list[Line]:
    return [of(f"{name}: whole process", repetitions.of(lambda: measure.timed(command)[0]))]


def _rivals() -> dict[str, list[str]]:
    return {
        "bpftool btf dump, raw": ["bpftool", "btf", "dump", "file", str(RUNNING), "format", "raw"],
        f"pahole -C, {len(structs())} structs": ["pahole", "-C", ",".join(structs()), str(RUNNING)],
    }


def _tolerant(remarks: list[str], work: Callable[[], Iterable[Line]]) -> list[Line]:
    """What cannot be measured here is said, the rest is measured."""
    try:
        return list(work())
    except KcompatError as error:
        remarks.append(f"not measured: {error}")
        return []
