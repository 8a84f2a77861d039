"""`kcompat harvest` as a user runs it: what it prints, where, and its exit status."""

import json
import os
import pty
import subprocess

import pytest

from tests.kcompat.cli_tools import COMMAND, environment, kcompat, one_line, sock_common, vmlinux


@pytest.fixture
def kernel(tmp_path):
    return vmlinux(tmp_path / "some.kernel", btf=sock_common())


def test_a_file_and_then_the_database_knows_it(tmp_path, kernel):
    done = kcompat("--db", tmp_path / "db", "harvest", kernel, home=tmp_path)
    shown = kcompat("--db", tmp_path / "db", "db", "show", home=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("harvested  1 file, 1 kernel in ")
    assert "6.1.0-test" in shown.stdout


def test_a_second_run_has_nothing_to_do(tmp_path, kernel):
    kcompat("--db", tmp_path / "db", "harvest", kernel, home=tmp_path)
    done = kcompat("--db", tmp_path / "db", "harvest", kernel, home=tmp_path)

    assert done.returncode == 0 and "known      1 file\n" in done.stdout


def test_a_bad_file_is_one_line_and_exit_1_and_the_rest_goes_on(tmp_path, kernel):
    (tmp_path / "empty").touch()
    done = kcompat("--db", tmp_path / "db", "harvest", tmp_path / "empty", kernel, home=tmp_path)

    assert done.returncode == 1 and one_line(done.stderr) == f"kcompat: {tmp_path}/empty: empty"
    assert done.stdout.endswith("failed     1 file\n           1 empty\n") and "1 kernel" in done.stdout


def test_a_name_that_would_break_the_line_does_not(tmp_path):
    path = tmp_path / "two\nlines\x1b[31m\udcff"
    path.touch()
    done = kcompat("--db", tmp_path / "db", "harvest", path, home=tmp_path)

    assert one_line(done.stderr).endswith("two?lines?[31m?: empty")


def test_json(tmp_path, kernel):
    done = kcompat("--db", tmp_path / "db", "harvest", kernel, tmp_path / "none", "--json", home=tmp_path)
    told = json.loads(done.stdout)

    assert done.returncode == 1 and set(told) == {"done", "known", "skipped", "failed", "stats"}
    assert told["done"][0]["path"] == str(kernel) and told["done"][0]["kernels"][0]["release"] == "6.1.0-test"
    assert told["failed"] == [{"path": f"{tmp_path}/none", "reasons": ["No such file or directory"], "kernels": []}]
    assert (told["stats"]["files"], told["stats"]["kernels"]) == (2, 1)


def test_paths_from_standard_input(tmp_path, kernel):
    done = kcompat("--db", tmp_path / "db", "harvest", "-", home=tmp_path, input=f"{kernel}\n{tmp_path}/none\n")

    assert done.returncode == 1 and "1 kernel" in done.stdout and "none: No such file" in done.stderr


def test_a_terminal_gets_a_bar_and_the_faults_above_it(tmp_path, kernel):
    (tmp_path / "empty").touch()
    ours, theirs = pty.openpty()
    done = subprocess.run([*COMMAND, "--db", tmp_path / "db", "harvest", tmp_path / "empty", kernel], cwd="/",
                          env=environment(tmp_path) | {"TERM": "xterm", "COLUMNS": "200"}, stderr=theirs,
                          stdout=subprocess.PIPE, text=True, timeout=60)
    os.close(theirs)
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)

    assert done.returncode == 1 and "2/2" in seen and "1 failed" in seen and f"kcompat: {tmp_path}/empty: empty" in seen


def test_a_database_that_cannot_be_made_is_one_line(tmp_path, kernel):
    done = kcompat("--db", "/proc/nowhere/db", "harvest", kernel, home=tmp_path)

    assert done.returncode == 2 and one_line(done.stderr)
