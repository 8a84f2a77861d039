"""A database of 5,000 kernels: how large it is, and how long a look-up by build-id and a field's history take.

``python -m benchmarks.database``. Every kernel has the whole catalogue, as after a harvest. Layouts vary as they do
over releases: a member is added here and there, and what lies behind it moves.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import measure, report
from benchmarks.measure import Repetitions, Result, Target, of
from kcompat.fields import CATALOGUE, Field, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db import queries
from offset_db.db import Database
from offset_db.exchange_merge import absorb
from offset_db.rows import Remembered, Stored

TITLE = "A database of 5,000 kernels"
KERNELS = 5000
_AT = "2031-01-01T00:00:00Z"


def kernels(number: int, seed: int = 1) -> Iterator[Remembered]:
    """Kernels with real release names' shapes, and the catalogue laid out in each without overlap."""
    rng = random.Random(seed)
    gaps = {field: rng.choice((0, 0, 8, 24)) for field in CATALOGUE}
    for n in range(number):
        if n % 40 == 0:
            gaps[rng.choice(CATALOGUE)] += 8
        major, build = 3 + n // 1000, n % 1000
        release = f"{major}.{build // 60}.0-{build % 60 + 1}-generic"
        kernel = Kernel(f"{rng.getrandbits(160):040x}", release, f"Linux version {release} (buildd@lcy02-amd64-045) "
                        f"(gcc (Ubuntu 11.4.0)) #{build}-Ubuntu SMP", ("x86_64", "aarch64")[n % 2])
        yield Remembered(kernel, _AT, _AT, tuple(_answers(gaps)))


def _answers(gaps: dict[Field, int]) -> Iterator[Stored]:
    ends: dict[str, int] = {}
    for field in CATALOGUE:
        offset = -(-(ends.get(field.base, 0) + gaps[field]) // field.width) * field.width
        ends[field.base] = offset + field.width
        path = field.paths[0]
        evidence = {} if path == field.member else {"path": path}
        yield Stored(Offset.known(field, offset, "btf", evidence=evidence), _AT)


def run(repetitions: Repetitions, number: int = KERNELS) -> Result:
    """Every look-up is of another kernel, so that nothing of it is at hand."""
    before = measure.load()
    with tempfile.TemporaryDirectory(prefix="kcompat-bench-") as directory:
        path = Path(directory) / "offsets.db"
        made = _made(path, number)
        with Database.open(path) as db:
            some = iter(random.Random(2).choices(db.kernels(), k=repetitions.times))
            field = find("srtt_us")

            def timed(work: Callable[[], object]) -> list[float]:
                return repetitions.of(lambda: _seconds(work))

            lines = (
                of(f"{number} kernels taken in", [made], unit="s", note=f"{len(CATALOGUE)} fields each"),
                of("look-up by build-id", timed(lambda: db.offsets(next(some))), target=Target(1)),
                of("history of a field", timed(lambda: queries.history(db, field)), target=Target(100)),
                of("where a field has a value", timed(lambda: queries.where(db, field, "48"))),
                of("list of kernels", timed(lambda: queries.kernels(db, queries.Filter()))),
                of("disagreements", timed(db.disagreements)),
                of("file", [path.stat().st_size / 1e6], unit="MB", target=Target(40)),
            )
    return Result("database", TITLE, lines, (), (before, measure.load()), repetitions.begun, repetitions.busy)


def _made(path: Path, number: int) -> float:
    """The seconds it took."""
    with Database.open(path) as db:
        seconds = _seconds(lambda: absorb(db, kernels(number)))
        db.vacuum()
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(report.text([run(Repetitions(15, 3.0))]), end="")
