"""Our guess of the whole catalogue beside a sequential scan of seven fields: connections, time, and who is right.

``python -m benchmarks guess``
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import measure, sequential
from benchmarks.measure import Line, Repetitions, Result, Target, of
from kcompat.btf import BtfResolver
from kcompat.errors import KcompatError
from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel
from kcompat.offsets import State
from kcompat.probe import require_bpf

TITLE = "The guess, on a kernel nobody described, beside a sequential scan"
_WHOLE_MS, _THINKING_MS, _RATIO = 1500, 150, 50


def run(repetitions: Repetitions) -> Result:
    """Raises Missing or Unsupported where no guess is possible."""
    require_bpf()
    before = measure.load()
    measure.once("guess-cached")  # so that the object is at hand, and the files are in memory
    cold = repetitions.fresh("guess-cold")
    cached = repetitions.fresh("guess-cached")
    program, version_code = sequential.compiled()
    rival = repetitions.of(lambda: sequential.scan(program, version_code))
    truth = _truth()
    ratio = of("connections: the scan's / the guess's", _ratios(rival, cold + cached), unit="x",
               target=Target(_RATIO, at_least=True))
    lines = (*_of_guess("guess, nothing cached", cold, truth), *_of_guess("guess, object cached", cached, truth),
             *_of_rival(rival, truth), ratio)
    return Result("guess", TITLE, lines, tuple(_remarks(rival, truth)), (before, measure.load()), repetitions.begun,
                  repetitions.busy)


def _of_guess(name: str, runs: Sequence[Mapping[str, Any]], truth: Mapping[str, int]) -> Iterable[Line]:
    fields = runs[0]["fields"]
    right = [sum(truth.get(f) == at for f, at in r["places"].items()) for r in runs]
    wrong = [sum(f in truth and truth[f] != at for f, at in r["places"].items()) for r in runs]
    yield of(f"{name}: whole", (r["seconds"] for r in runs), target=Target(_WHOLE_MS),
             note=f"{fields} fields; {measure.cpu(runs)}; "
                  f"imports before it {_median_ms(r['imports_s'] for r in runs)} ms")
    if any(r["compile_s"] for r in runs):
        yield of(f"{name}: compile", (r["compile_s"] for r in runs), note="bcc and its LLVM")
    yield of(f"{name}: sampling", (r["sampling_s"] for r in runs))
    yield of(f"{name}: solving", (r["solving_s"] for r in runs))
    yield of(f"{name}: sampling + solving", (r["sampling_s"] + r["solving_s"] for r in runs),
             target=Target(_THINKING_MS), note=f"rounds {_range(r['rounds'] for r in runs)}")
    yield of(f"{name}: TCP connections", (r["connections"] for r in runs), unit="",
             note=f"and sockets that connect to nobody; samples {_range(r['samples'] for r in runs)}")
    if truth:
        yield of(f"{name}: fields equal to BTF", right, unit="", note=f"wrong: {_range(wrong)}")


def _of_rival(runs: Sequence[sequential.Scan], truth: Mapping[str, int]) -> Iterable[Line]:
    fields = len(runs[0].finds)
    yield of("sequential scan: whole", (r.seconds for r in runs),
             note=f"{fields} fields; ships compiled, imports apart; hook: {runs[0].hook}")
    yield of("sequential scan: TCP connections", (r.connections for r in runs), unit="",
             note=f"missed events {_range(r.missed for r in runs)}; "
                  f"{_median_ms(r.seconds / r.connections for r in runs)} ms each")
    if truth:
        wrong = [sum(f.offset is not None and f.offset != truth.get(f.field.name) for f in r.finds) for r in runs]
        yield of("sequential scan: fields equal to BTF",
                 (sum(f.offset == truth.get(f.field.name) for f in r.finds) for r in runs), unit="",
                 note=f"wrong: {_range(wrong)}")


def _remarks(runs: Sequence[sequential.Scan], truth: Mapping[str, int]) -> Iterable[str]:
    """What the last scan found, field by field."""
    for found in runs[-1].finds:
        name = found.field.name
        verdict = ("no BTF to compare with" if not truth else
                   "right by BTF" if found.offset == truth.get(name) else f"WRONG, BTF says {truth.get(name)}")
        took = f"{found.connections} connections, {found.seconds * 1000:.1f} ms" if found.connections else "with it"
        yield f"the scan's {name}: {found.offset} ({took}): {verdict}"


def _ratios(rival: Sequence[sequential.Scan], ours: Sequence[Mapping[str, Any]]) -> list[float]:
    """Each scan against the guess that took the most."""
    most = max(r["connections"] for r in ours)
    return [scan.connections / most for scan in rival]


def _truth() -> dict[str, int]:
    """Offsets by BTF; empty where there is none. Neither guess nor scan sees them."""
    try:
        answers = BtfResolver().resolve(Kernel.running(), CATALOGUE)
    except KcompatError:
        return {}
    return {o.field.name: o.offset for o in answers if o.state is State.KNOWN and o.offset is not None}


def _median_ms(seconds: Iterable[float]) -> str:
    value = of("", seconds).median
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def _range(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]} to {found[-1]}"
