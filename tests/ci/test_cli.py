"""The command line: what is chosen, what is left behind, exit codes; the kernels here end before they boot."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ci import __main__ as cli
from ci import cli_command
from ci.given import Given
from ci.kernels import MATRIX
from ci.matrix import REPOSITORY, unknown
from ci.results import Check, KernelResult, MatrixResult
from ci.store import Store, save
from ci.verdict import Outcome

SWITCHES = ("--deadline", "60")


@pytest.fixture
def ci(monkeypatch):
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    return lambda *args: CliRunner().invoke(cli.main, [str(arg) for arg in args])


@pytest.fixture
def played(ci, monkeypatch, tmp_path):
    """A COMMAND in kernels whose outcomes are played; the jobs asked for are in ``played.jobs``."""
    def played(*args, **outcomes):
        played.jobs = []

        def play(kernel, job, log, progress):
            played.jobs.append((kernel.name, job, log))
            outcome = outcomes.get(f"k{kernel.name.replace('.', '_')}", Outcome.PASS)
            check = Check("command", outcome, "why", details={"status": 0})
            return KernelResult(kernel.name, kernel.machine, kernel.flavour, checks=(check,), boot_s=8.0, total_s=30.0,
                                console=("line one", "line [two]"), log=str(log))

        monkeypatch.setattr(cli_command, "run_command", play)
        return ci(*args)

    return played


@pytest.fixture
def garbage(tmp_path):
    path = tmp_path / "vmlinuz-6.0.0-garbage"
    path.write_bytes(b"\x17" * 100_000)
    return path


@pytest.mark.parametrize("start", [[], ["run"]])
def test_both_spellings_run_a_command(played, start):
    result = played(*start, "-k", "5.10", "--", "true")
    assert result.exit_code == 0
    ((name, job, log),) = played.jobs
    assert (name, job.command) == ("5.10", ("true",))
    assert job.environment["KCOMPAT_REQUIRE_KERNEL"] == "1"
    assert log.is_absolute()
    assert result.stdout == "5.10: pass: why (30.0 s, boot 8.0 s)\n"


def test_a_command_keeps_its_own_options(played):
    played("-k", "6.1", *SWITCHES, "--", "uname", "-a", "--json")
    assert (played.jobs[0][1].command, played.jobs[0][1].deadline_s) == (("uname", "-a", "--json"), 60.0)


def test_a_failure_shows_the_console_and_wins(played):
    result = played("run", "-k", "*", "--", "true", k5_10=Outcome.UNKNOWN, k6_1=Outcome.FAIL)
    assert result.exit_code == 1
    assert "  | line [two]" in result.stdout
    assert len(played.jobs) == len(cli.MATRIX)


def test_could_not_tell_is_not_a_pass(played):
    assert played("-k", "*", "--", "true", k6_1=Outcome.UNKNOWN).exit_code == 3


def test_json_of_a_command_is_one_object(played):
    result = played("-k", "6.1*", "--json", "--", "true", k6_12=Outcome.FAIL)
    kernels = {k["name"]: k["outcome"] for k in json.loads(result.stdout)["kernels"]}
    assert (kernels["6.1"], kernels["6.12"]) == ("pass", "fail")


def test_a_users_kernel_that_is_none_is_told_and_everything_is_left_behind(ci, garbage, tmp_path):
    result = ci("run", "--kernel", garbage, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 3
    (kernel,) = json.loads(result.stdout)["kernels"]
    assert (kernel["origin"], kernel["name"]) == ("given", "6.0.0-garbage")
    assert kernel["checks"][0]["reason"] == f"{garbage} is no x86 kernel image"
    assert json.loads((tmp_path / "out/matrix.json").read_text())["kernels"] == [kernel]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_directory_of_kernels_is_found_and_shown(ci, garbage, tmp_path):
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.0.1-other").write_bytes(b"")
    result = ci("run", "--kernel-dir", tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 3
    assert "6.0.0-garbage" in result.stdout
    assert "6.0.1-other" in result.stdout


@pytest.mark.parametrize(("args", "words"), [
    (["-k", "4.4"], "no kernel is called '4.4'; there are 4.4-ubuntu"),
    (["run", "--modules", "/lib/modules"], "of the kernel that --kernel names"),
    (["run", "--kernel-dir", "/proc/self/fdinfo"], "no vmlinuz-* in /proc/self/fdinfo"),
    (["run", "-j", "2", "--", "true"], "a COMMAND runs here"),
    (["run", "--deadline", "0"], "not in the range"),
])
def test_errors_of_usage(ci, args, words):
    result = ci(*args)
    assert result.exit_code == 2
    assert words in result.stderr


def test_two_kernels_of_one_name_are_refused(ci, garbage, tmp_path):
    result = ci("run", "--kernel", garbage, "--kernel-dir", garbage.parent, "--output", tmp_path / "out")
    assert (result.exit_code, "two kernels are called 6.0.0-garbage" in result.stderr) == (2, True)


def test_without_a_scheduler_nothing_is_run(ci, garbage, tmp_path):
    result = ci("run", "--kernel", garbage, "--scheduler", "tcp://127.0.0.1:1", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in result.stderr
    assert not (tmp_path / "out").exists()


def test_list_and_help_name_everything():
    listed = CliRunner().invoke(cli.main, ["list"]).stdout
    assert all(entry.name in listed for entry in MATRIX)
    for args in (["--help"], ["run", "--help"], ["list", "--help"], ["report", "--help"]):
        assert "Example" in CliRunner().invoke(cli.main, args).stdout


def stored(tmp_path, outcome, name="5.10"):
    check = Check("boot", outcome, "why")
    kernels = (KernelResult(name, "x86_64", "generic", checks=(check,)),)
    save(MatrixResult("2026-11-23T22:00:00+00:00", 60.0, {"machine": "x86_64"}, kernels), Store(tmp_path).results)
    return tmp_path


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.PASS, 0), (Outcome.FAIL, 1), (Outcome.UNKNOWN, 3)])
def test_report_shows_a_run_and_ends_as_it_did(ci, tmp_path, outcome, code):
    result = ci("report", stored(tmp_path, outcome))
    assert result.exit_code == code
    assert "5.10" in result.stdout


def test_several_results_are_parts_of_one_matrix(ci, tmp_path):
    parts = [stored(tmp_path / str(n), outcome, name) for n, (name, outcome) in enumerate(
        [("5.10", Outcome.FAIL), ("6.1", Outcome.PASS), ("5.10", Outcome.PASS)])]
    result = ci("report", *parts, "--markdown", tmp_path / "matrix.md")
    assert result.exit_code == 0
    told = (tmp_path / "matrix.md").read_text()
    assert "2 kernels in 3 minutes, 2 pass, 0 fail" in told
    assert ci("report", *reversed(parts)).exit_code == 1


def test_report_of_no_run(ci, tmp_path):
    assert "No such file or directory; `python -m ci run` writes it" in ci("report", tmp_path / "x.json").stderr
    (tmp_path / "x.json").write_text('{"format": 1}')
    result = ci("report", tmp_path / "x.json")
    assert (result.exit_code, "no results of a run" in result.stderr) == (1, True)


def test_a_kernel_that_was_not_had_has_every_check_untold():
    result = unknown(Given("x", None), "fetch", "no network")
    assert result.outcome is Outcome.UNKNOWN
    assert result.reason.startswith("fetch: no network; boot: no fetch; ")


def test_without_a_network_a_kernel_cannot_be_told(tmp_path):
    """The real apt, where there is only a loopback and nothing in the cache."""
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    command = [*alone, sys.executable, "-m", "ci", "run", "-k", "5.10", "--json", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "KCOMPAT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 3, done.stderr
    (kernel,) = json.loads(done.stdout)["kernels"]
    assert (kernel["checks"][0]["name"], kernel["checks"][0]["outcome"]) == ("fetch", "could not tell")
    assert kernel["checks"][0]["reason"].startswith("no build of 5.10 is to be had: bullseye-security: apt-get ")
    assert {check["outcome"] for check in kernel["checks"]} == {"could not tell"}
