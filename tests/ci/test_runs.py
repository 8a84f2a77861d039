"""What a run leaves behind: results that are read back as they were, and an offset database made by the product."""

import io
import json

import pytest
from rich.console import Console

from ci import runs
from ci.given import Given
from ci.judge import Recording
from ci.live import Progress
from ci.matrix import Limits, Yield
from ci.product import ProductError, kcompat, read_dwarf, remember
from ci.results import Check, FieldResult, KernelResult, MatrixResult
from ci.runs import Spread, default_jobs, run_matrix
from ci.scheduler import SchedulerError
from ci.store import Store, StoreError, load, save
from ci.verdict import Outcome

PASS = Check("boot", Outcome.PASS, "", 8.5, {"a": [1]})
FIELD = FieldResult("sock.sk_mark", "ok", 8, {"btf": {"state": "known", "offset": 8}}, Outcome.PASS)


def kernel(name, *checks, **more):
    return KernelResult(name, "x86_64", "given", checks=checks or (PASS,), **more)


def export(build_id, offset=8):
    """JSON Lines as `kcompat db export` writes them."""
    when = "2026-11-23T22:00:00+00:00"
    rows = [
        {"format": "kcompat-offsets", "version": 1},
        {"kernel": build_id, "release": "6.9", "version": "", "machine": "x86_64", "modules": {}, "first_seen": when,
         "last_seen": when},
        {"kernel": build_id, "struct": "sock", "member": "sk_mark", "state": "known", "offset": offset, "width": 4,
         "bit_offset": None, "source": "guess", "verdict": "ok", "confidence": 1.0, "candidates": [offset],
         "reason": None, "bit_size": None, "evidence": {"samples": 9}, "module_build_id": None, "recorded_at": when,
         "verified_at": None, "quarantined_at": None, "quarantine_reason": None},
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A run of two kernels whose workers give these yields, or break."""
    def run(*given, error=None):
        def check_all(*_):
            yield from given
            if error:
                raise error

        monkeypatch.setattr(runs, "check_all", check_all)
        kernels = [Given("one", tmp_path / "one"), Given("two", tmp_path / "two")]
        return run_matrix(kernels, Limits(), Spread(1), Store(tmp_path / "out"), None, Console(file=io.StringIO()))

    return run


def test_results_come_back_as_they_were(tmp_path):
    result = MatrixResult("2026-11-23T22:00:00+00:00", 60.0, {"cpus": "2"},
                          (kernel("one", fields=(FIELD,), steps_s={"guess": 2.5}, console=("a",)),), "abc")
    save(result, tmp_path / "deep/matrix.json")
    assert load(tmp_path / "deep/matrix.json") == load(tmp_path / "deep") == result
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["matrix.json"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "kernels": [{}]}', "\x00"])
def test_no_other_file_is_taken_for_results(tmp_path, content):
    (tmp_path / "matrix.json").write_text(content)
    with pytest.raises(StoreError, match="no results of a run"):
        load(tmp_path)


def test_every_kernels_offsets_are_in_one_database(run, tmp_path):
    result = run(Yield(kernel("two"), (export("b" * 40),)), Yield(kernel("one"), (export("a" * 40),)))
    assert [k.name for k in result.kernels] == ["one", "two"]
    assert load(tmp_path / "out") == result
    told = json.loads(kcompat("--db", str(tmp_path / "out/offsets.db"), "db", "kernels", "--json"))
    assert {k["build_id"] for k in told["kernels"]} == {"a" * 40, "b" * 40}
    assert "samples" in kcompat("--db", str(tmp_path / "out/offsets.db"), "db", "export")


def test_recorded_guesses_lie_beside_what_a_judge_says(run, tmp_path):
    run(Yield(kernel("one"), (), Recording(b"abc", {"fields": []})), Yield(kernel("two")))
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out/recordings").iterdir()}
    assert kept.pop("one.guess") == b"abc" and json.loads(kept.pop("one.json")) == {"fields": []}
    assert not kept


def test_an_interrupted_run_keeps_what_it_found_and_the_rest_is_untold(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Yield(kernel("one"), (export("a" * 40),)), error=KeyboardInterrupt())
    one, two = load(tmp_path / "out").kernels
    assert (one.outcome, two.outcome) == (Outcome.PASS, Outcome.UNKNOWN)
    assert "interrupted" in two.reason
    assert (tmp_path / "out/offsets.db").exists()


def test_a_run_that_never_began_leaves_nothing(run, tmp_path):
    with pytest.raises(SchedulerError):
        run(error=SchedulerError("no"))
    assert not (tmp_path / "out").exists()


def test_what_the_database_refuses_is_told_in_its_words(tmp_path):
    with pytest.raises(ProductError, match=r"kcompat ended with 1: .*0\.jsonl: "):
        remember(tmp_path / "offsets.db", ["garbage\n"])


def test_a_vmlinux_without_dwarf_is_a_judge_that_says_why(tmp_path):
    (tmp_path / "vmlinux").write_bytes(b"no ELF")
    dwarf, exported = read_dwarf(tmp_path / "vmlinux")
    assert (dwarf.said, exported) == (None, None)
    assert "vmlinux" in dwarf.reason


def test_as_many_vms_as_fit(monkeypatch):
    monkeypatch.setattr(runs.os, "cpu_count", lambda: 9)
    assert [default_jobs(cpus) for cpus in (1, 2, 16)] == [9, 4, 1]


def test_a_terminal_shows_what_runs_and_what_ended():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(console, 3) as progress:
        progress.told("5.10", "tcp://a", "boot", "\x1b[2Jbooting")
        progress.ended(kernel("6.1", Check("tests", Outcome.FAIL, "1 failed: t::a"), total_s=61.0))
        console.print(progress._render())
    said = console.file.getvalue()
    assert "booting" in said
    assert "tests: 1 failed: t::a" in said
    assert "1 waiting" in said
    assert "\x1b[2J" not in said


def test_without_a_terminal_each_kernel_is_a_line():
    console = Console(file=io.StringIO(), width=40)
    with Progress(console, 2) as progress:
        progress.told("5.10", "tcp://a", "boot", "booting")
        progress.ended(kernel("5.10", release="5.10.0-46-amd64", total_s=61.0, boot_s=8.5))
    assert console.file.getvalue() == "5.10 5.10.0-46-amd64: pass (61.0 s, boot 8.5 s)\n"
