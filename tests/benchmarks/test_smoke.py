"""Each benchmark runs and tells the truth of what it saw; how long anything takes is not tested."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import database, delivery, report, resolve
from benchmarks.__main__ import BENCHMARKS, _run
from benchmarks.measure import Line, Repetitions, Result, Target, timed
from kcompat.errors import KcompatError, Missing
from kcompat.fields import CATALOGUE

REPOSITORY = Path(__file__).resolve().parents[2]
# Minutes of work each, and what they compare is compared in tests/kcompat, tests/offset_db and tests/kernel.
LONG = ("dwarf", "harvest", "http_overhead", "matrix", "soak")
SIZED = ("database", "delivery")
SHORT = tuple(name for name in BENCHMARKS if name not in LONG + SIZED)
REQUIRED = os.environ.get("KCOMPAT_REQUIRE_KERNEL") == "1"


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=REPOSITORY, capture_output=True,
                          text=True, timeout=280)


@pytest.fixture(scope="module")
def measured():
    """What one repetition of everything says, if it can say anything here."""
    done = command("-n", "1", "--patience", "0", "--json", *SHORT)
    if done.returncode in (2, 3):
        if REQUIRED:
            pytest.fail(f"required here (KCOMPAT_REQUIRE_KERNEL=1), but {done.stderr}")
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["benchmarks"]


@pytest.mark.kernel
@pytest.mark.parametrize("name", SHORT)
def test_it_runs(measured, name):
    lines = measured[name]["lines"]
    assert lines and all(line["samples"] for line in lines)
    assert any(line["target"] for line in lines)


@pytest.mark.kernel
def test_the_scan_finds_its_fields_one_connection_an_offset(measured):
    lines = {line["what"]: line for line in measured["guess"]["lines"]}
    connections = lines["sequential scan: TCP connections"]["median"]
    ours = lines["guess, object cached: TCP connections"]["median"]
    assert connections > 10 * ours > 0
    if "sequential scan: fields equal to BTF" in lines:
        # It may well be wrong, but not everywhere: then the hook, and not the method, would be what we measure.
        assert lines["sequential scan: fields equal to BTF"]["median"] >= 3


def test_the_database_is_measured_at_any_size():
    lines = {line.what: line for line in database.run(Repetitions(1, 0), number=40).lines}
    assert lines["40 kernels taken in"].note == f"{len(CATALOGUE)} fields each"
    assert all(line.samples for line in lines.values())


def test_a_flush_is_measured_at_any_size():
    lines = delivery.run(Repetitions(1, 0), flows=300).lines
    assert [line.what for line in lines if "all of it" in line.what] == [
        f"{which} Kubernetes: all of it" for which in ("without", "with")]
    assert all(line.samples for line in lines)


def line(value, target=None):
    return Line("a", (value,), "ms", target)


@pytest.mark.parametrize(("value", "target", "verdict"), [
    (1, Target(2), "PASS"), (2, Target(2), "short of target"), (50, Target(50, at_least=True), "PASS"),
    (49, Target(50, at_least=True), "short of target"), (1, None, ""),
])
def test_the_verdict_is_on_the_median(value, target, verdict):
    assert line(value, target).verdict == verdict
    assert Line("a", (value, value, 1e9 if not target or not target.at_least else 0), "ms", target).verdict == verdict


def test_p95_of_one_sample_is_that_sample():
    assert line(7).p95 == 7


def test_a_page_can_be_written_of_any_benchmark_without_prose_of_figures():
    result = Result("resolve", "Title", (line(1, Target(2)),), ("a | b",), (0.5, 1.0), 1, 0)
    page = report.markdown([result], 1)
    assert "| a | 1.0 | 1.0 | ms | < 2 ms | PASS |  |" in page
    assert "Title" in report.text([result])


def test_a_section_is_written_anew_in_its_place_or_behind_all_others():
    first, second = (Result("resolve", title, (line(1),), (), (0.5, 1.0), 1, 0) for title in ("First", "Second"))
    page = report.markdown([first, second], 1)
    third = replace(first, title="Third")

    again = report.renewed(page, [replace(first, lines=(line(2),)), third], 3)

    titles = [row for row in again.splitlines() if row.startswith("## ")]
    assert titles == ["## First", "## Second", "## Third"] and again.count("3 repetitions.") == 2
    assert "| a | 2.0 |" in again.split("## Second")[0] and again.count("| a | 1.0 |") == 2
    assert report.renewed(again, [third], 3) == again


def test_what_could_not_be_measured_is_on_the_page_with_its_reason(monkeypatch):
    def missing(repetitions):
        raise Missing("no vmlinux with debug information")

    monkeypatch.setitem(BENCHMARKS, "dwarf", ("DWARF", missing))
    result = _run("dwarf", Repetitions(1, 0), asked=False)
    assert "not measured: no vmlinux" in report.markdown([result], 1) and "no vmlinux" in report.text([result])
    with pytest.raises(Missing):
        _run("dwarf", Repetitions(1, 0), asked=True)


def test_a_command_that_leaves_a_field_open_is_timed_and_one_that_fails_is_not():
    leaves_one_open = [sys.executable, "-c", "import sys; print('told'); sys.exit(1)"]
    assert timed(leaves_one_open, fine=(0, 1))[1] == b"told\n"
    with pytest.raises(KcompatError, match="exit 1"):
        timed(leaves_one_open)
    assert resolve._told(b'{"fields": [{"state": "known"}, {"state": "unknown"}]}') == 1
    with pytest.raises(KcompatError, match="no field"):
        resolve._told(b'{"fields": [{"state": "unknown"}]}')


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_its_prose(name):
    assert report._TEXTS[name].strip()


def test_what_there_is_can_be_listed():
    done = command("--list")
    assert done.returncode == 0
    assert [row.split("\t")[0] for row in done.stdout.splitlines()] == list(BENCHMARKS)


def test_help_has_an_example():
    assert "python -m benchmarks --write-docs" in command("--help").stdout


@pytest.mark.parametrize("arguments", [("nonsense",), ("-n", "0")])
def test_what_makes_no_sense_is_refused(arguments):
    done = command(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
