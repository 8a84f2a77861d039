"""Where the time of a kernel of the matrix goes, by the last run's results; beside compiling in the guest instead.

``python -m ci run`` or ``make matrix``, then ``python -m benchmarks matrix``
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import REPOSITORY, Line, Repetitions, Result, Target, of
from ci.results import KernelResult
from ci.store import StoreError, default_store, load
from kcompat.errors import KcompatError, Missing

TITLE = "A kernel booted, tested and shut down, without KVM"
_WHOLE_S, _SHARE = 120, 33
_COMPILE = "compile"
# Emulated, a compiler takes a minute; on a busy machine several.
_DEADLINE_S = 900
_TOLD = re.compile(r'\{"guest_compile_s": [\d., ]+\}')


def run(repetitions: Repetitions) -> Result:
    """Raises Missing where no kernel of a finished run was booted, KcompatError where none can be booted now."""
    before = measure.load()
    try:
        results = load(default_store().results)
    except StoreError as error:
        raise Missing(f"no results of a run: make matrix ({error})") from error
    kernels = [kernel for kernel in results.kernels if kernel.total_s is not None and "tests" in kernel.steps_s]
    if not kernels:
        raise Missing(f"of the run of {results.started} no kernel got as far as its tests: make matrix")
    # Minutes each: one of them tells.
    repetitions = Repetitions(1, 0.0)
    inside = repetitions.of(lambda: _inside(kernels[0].name))
    lines = (*_of_run(kernels), *_of_compiling(kernels, inside))
    return Result("matrix", TITLE, lines, tuple(map(_told, kernels)), (before, measure.load()), repetitions.begun,
                  repetitions.busy)


def phases(kernel: KernelResult) -> dict[str, float]:
    """Seconds by what they went into. What is left of the VM's time is its start, its shutdown and our script."""
    steps = dict(kernel.steps_s)
    found = {_COMPILE: steps.pop(_COMPILE, 0.0), "boot": kernel.boot_s or 0.0, **steps}
    return {**found, "rest": max(0.0, whole(kernel) - sum(found.values()))}


def whole(kernel: KernelResult) -> float:
    """The VM's time and what came before it: fetching is not counted, a kernel is fetched once."""
    return (kernel.total_s or 0.0) + kernel.steps_s.get(_COMPILE, 0.0)


def _of_run(kernels: Sequence[KernelResult]) -> Iterable[Line]:
    yield of("one kernel: whole", (whole(k) for k in kernels), unit="s", target=Target(_WHOLE_S),
             note=f"{len(kernels)} kernels; p95 is nearly the slowest of them")
    for name in dict.fromkeys(name for kernel in kernels for name in phases(kernel)):
        yield of(f"one kernel: {name}", (phases(k).get(name, 0.0) for k in kernels), unit="s")


def _of_compiling(kernels: Sequence[KernelResult], inside: Sequence[float]) -> Iterable[Line]:
    yield of("compiling, of the whole", (100 * phases(k)[_COMPILE] / whole(k) for k in kernels), unit="%",
             target=Target(_SHARE), note="on this machine, before the boot; next to nothing the second time")
    yield of(f"compiling in the guest: {kernels[0].name}", inside, unit="s", note="the guess and netflow, nothing kept")
    share = [100 * seconds / (seconds + whole(kernels[0]) - phases(kernels[0])[_COMPILE]) for seconds in inside]
    yield of("compiling in the guest, of the whole it would be", share, unit="%")


def _inside(name: str) -> float:
    """What compiling both programs takes in a guest."""
    with tempfile.TemporaryDirectory(prefix="kcompat-benchmark-") as logs:
        command = [sys.executable, "-m", "ci", "run", "-k", name, "--deadline", str(_DEADLINE_S), "--logs", logs,
                   "--", sys.executable, "-m", "benchmarks.once", "compile"]
        try:
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False,
                                  timeout=_DEADLINE_S + 300)
        except subprocess.TimeoutExpired as error:
            raise KcompatError(f"{name}: no end after {_DEADLINE_S + 300} s") from error
        console = "".join(path.read_text(errors="replace") for path in Path(logs).glob("*.log"))
    told = _TOLD.search(console)
    if done.returncode or not told:
        words = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        raise KcompatError(f"{name}: the guest compiled nothing: {words[0]}")
    return float(json.loads(told[0])["guest_compile_s"])


def _told(kernel: KernelResult) -> str:
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases(kernel).items())
    return f"{kernel.name} ({kernel.release}), {kernel.outcome.value}: {whole(kernel):.1f} s: {parts}"
