"""A moment of the fuzzer of benchmarks/fuzz.py, and that it would see what it looks for."""

from dataclasses import replace

import pytest

from benchmarks.fuzz import fuzz
from benchmarks.fuzz_targets import TARGETS, Rivals
from kcompat.btf import RUNNING, BtfResolver
from kcompat.fields import CATALOGUE
from kcompat.offsets import Offset
from tests.kcompat.c_sample import need

pytestmark = pytest.mark.skipif(not RUNNING.exists(), reason="this kernel has no BTF to make the targets of")


@pytest.fixture
def rivals(tmp_path):
    need("gcc", "bpftool")
    with Rivals(tmp_path) as rivals:
        yield rivals


@pytest.mark.parametrize("name, most", [("btf", 150), ("dwarf-4", 15), ("dwarf-5", 15), ("dwarf-5-types", 15)])
def test_no_flip_is_answered_with_an_error_or_an_offset_of_our_own(tmp_path, rivals, name, most):
    target = TARGETS[name](tmp_path)
    whole = target.path.read_bytes()
    seen, findings = fuzz(target, rivals, seed=most, seconds=120, most=most)
    assert not findings
    assert seen["refused"] and seen[f"told as {target.rival} reads it"]
    assert target.path.read_bytes() == whole


class Careless(BtfResolver):
    def resolve(self, kernel, wanted):
        return [Offset.known(CATALOGUE[0], 12345, "btf")]


class Clumsy(BtfResolver):
    def resolve(self, kernel, wanted):
        return [{}[field] for field in wanted]


class Lost(BtfResolver):
    def resolve(self, kernel, wanted):
        while True:
            pass


@pytest.mark.parametrize("resolver, most, fault", [
    (Careless, 12, "reads otherwise"), (Clumsy, 1, "KeyError"), (Lost, 1, "no answer")])
def test_it_sees_made_up_offsets_stray_errors_and_no_end(tmp_path, rivals, monkeypatch, resolver, most, fault):
    monkeypatch.setattr("benchmarks.fuzz._PATIENCE_S", 0.5)
    target = replace(TARGETS["btf"](tmp_path), resolver=resolver)
    _, findings = fuzz(target, rivals, seed=1, seconds=60, most=most)
    assert any(fault in finding.fault for finding in findings)
