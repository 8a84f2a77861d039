"""The command line: the short form, one line per kernel, exit codes; no kernel is booted."""

import json

import pytest
from click.testing import CliRunner

from ci import __main__ as cli
from ci.job import Run
from ci.kernels import MATRIX
from ci.matrix import Result
from ci.verdict import Outcome, Verdict


@pytest.fixture
def ci(monkeypatch):
    """Runs the command line with outcomes played per kernel; the jobs asked for are in ``ci.jobs``."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def ci(*args, **outcomes):
        ci.jobs = []

        def play(entry, job, cache, log, progress):
            ci.jobs.append((entry.name, job, log))
            outcome = outcomes.get(f"k{entry.name.replace('.', '_')}", Outcome.PASS)
            run = Run(Verdict(outcome, "why"), "line one\nline [two]", 8.0, 30.0, log)
            return Result(entry, run.verdict, 1.0, None, run)

        monkeypatch.setattr(cli, "run_entry", play)
        return CliRunner().invoke(cli.main, list(args))

    return ci


@pytest.mark.parametrize("start", [[], ["run"]])
def test_both_spellings_run_the_kernel_tests(ci, start):
    result = ci(*start, "-k", "5.10")
    assert result.exit_code == 0
    ((name, job, log),) = ci.jobs
    assert (name, list(job.command[-4:])) == ("5.10", ["pytest", "-p", "no:cacheprovider", "tests/kernel"])
    assert job.environment["KCOMPAT_REQUIRE_KERNEL"] == "1"
    assert log.is_absolute()
    assert result.stdout == "5.10: pass: why (30.0 s, boot 8.0 s)\n"


def test_a_command_keeps_its_own_options(ci):
    ci("-k", "6.1", "--deadline", "60", "--", "uname", "-a", "--json")
    assert (ci.jobs[0][1].command, ci.jobs[0][1].deadline_s) == (("uname", "-a", "--json"), 60.0)


def test_a_failure_shows_the_console_and_wins(ci):
    result = ci("run", "-k", "*", k5_10=Outcome.UNKNOWN, k6_1=Outcome.FAIL)
    assert result.exit_code == 1
    assert "  | line [two]" in result.stdout
    assert len(ci.jobs) == len(MATRIX)


def test_could_not_tell_is_not_a_pass(ci):
    assert ci("-k", "*", k6_1=Outcome.UNKNOWN).exit_code == 3


def test_json_is_one_object(ci):
    result = ci("-k", "6.*", "--json", k6_12=Outcome.FAIL)
    kernels = json.loads(result.stdout)["kernels"]
    assert [(k["name"], k["outcome"]) for k in kernels] == [("6.1", "pass"), ("6.12", "fail")]


def test_an_unknown_kernel_is_an_error_of_usage(ci):
    result = ci("-k", "4.4")
    assert result.exit_code == 2
    assert "no kernel is called '4.4'; there are 5.10" in result.stderr


def test_list_and_help_name_everything():
    listed = CliRunner().invoke(cli.main, ["list"]).stdout
    assert all(entry.name in listed for entry in MATRIX)
    for args in (["--help"], ["run", "--help"], ["list", "--help"]):
        assert "Example" in CliRunner().invoke(cli.main, args).stdout
