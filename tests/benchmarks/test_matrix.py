"""The benchmark of the matrix adds up: every second of a kernel goes somewhere, and what was not run is said."""

import pytest

from benchmarks import matrix
from benchmarks.measure import Repetitions
from ci.results import KernelResult, MatrixResult
from ci.store import default_store, save
from kcompat.errors import Missing

STEPS = {"compile": 5.0, "info": 3.0, "guess": 7.0, "tests": 50.0}


def kernel(**changes):
    made = {"name": "6.1", "machine": "x86_64", "flavour": "generic", "boot_s": 15.0, "total_s": 95.0, "steps_s": STEPS}
    return KernelResult(**{**made, **changes})


def run_of(*kernels):
    save(MatrixResult("2031-01-01T00:00:00Z", 1.0, {}, kernels), default_store().results)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KCOMPAT_CACHE", str(tmp_path))


def test_every_second_goes_somewhere():
    phases = matrix.phases(kernel())
    assert phases == {"compile": 5.0, "boot": 15.0, "info": 3.0, "guess": 7.0, "tests": 50.0, "rest": 20.0}
    assert sum(phases.values()) == matrix.whole(kernel()) == 100.0


def test_medians_are_over_kernels_and_the_compiler_in_the_guest_is_beside_them(monkeypatch):
    run_of(kernel(), kernel(name="6.12", total_s=155.0), kernel(name="lost", total_s=40.0, steps_s={}))
    monkeypatch.setattr(matrix, "_inside", lambda name: {"6.1": 95.0}[name])
    lines = {line.what: line for line in matrix.run(Repetitions(15, 0)).lines}
    assert lines["one kernel: whole"].samples == (100.0, 160.0)
    assert lines["one kernel: whole"].verdict == "short of target"
    assert lines["one kernel: rest"].samples == (20.0, 80.0)
    assert lines["compiling, of the whole"].samples == (5.0, 3.125)
    assert lines["compiling in the guest, of the whole it would be"].samples == (50.0,)


def test_without_a_run_the_command_is_named():
    with pytest.raises(Missing, match="make matrix"):
        matrix.run(Repetitions(1, 0))
    run_of(kernel(steps_s={}))
    with pytest.raises(Missing, match="no kernel got as far as its tests: make matrix"):
        matrix.run(Repetitions(1, 0))
