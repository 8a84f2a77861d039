"""A guest's steps, here on this machine: each is reported whole, whatever becomes of it, and what it started ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci.guest import STEPS, Guest, StepError, step
from ci.matrix import REPOSITORY
from ci.verdict import Step, pack_step, parse_report, unpack_step
from tests.ci.test_vm import wait_until

NONCE = "0123456789abcdef"
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v), max_leaves=5)


@given(st.text(), st.floats(0, 1e6), st.dictionaries(st.text(), VALUES))
def test_a_step_arrives_as_it_was_sent(name, seconds, found):
    assert unpack_step(pack_step(Step(name, seconds, found))) == Step(name, seconds, found)


@given(st.data())
def test_a_step_that_lost_a_byte_or_has_another_is_not_believed(data):
    word = pack_step(Step("guess", 1.5, {"status": 0}))
    at = data.draw(st.integers(0, len(word) - 1))
    other = data.draw(st.sampled_from("ABCxyz019+/=") | st.just(""))
    damaged = unpack_step(word[:at] + other + word[at + 1 :])
    # The gzip header's unused bytes (time, system) are the only ones that say nothing.
    assert damaged in (None, Step("guess", 1.5, {"status": 0}))


@given(st.binary())
def test_no_garbage_is_a_step(raw):
    assert unpack_step(raw.decode("latin-1")) is None


def test_steps_are_read_up_to_where_the_guest_was_lost():
    steps = [Step("info", 1.0, {"status": 0}), Step("guess", 2.0, {"status": 1})]
    sent = "".join(f"{NONCE} step {pack_step(s)}\r\n" for s in steps)
    start = f"{NONCE} start 5.10 8.79\r\n"
    assert parse_report(f"{start}{sent}{NONCE} exit 0\r\n", NONCE).steps == tuple(steps)
    cut = parse_report(f"{start}{sent[:-20]}", NONCE)
    assert (cut.steps, cut.exit_status) == ((steps[0],), None)


def test_the_command_reports_every_step_it_is_asked_for(tmp_path):
    port = tmp_path / "port"
    port.touch()
    end = str(time.monotonic() + 100)
    environment = {**os.environ, "KCOMPAT_CI_PORT": str(port), "KCOMPAT_CI_NONCE": NONCE, "KCOMPAT_CI_SECONDS": end}
    command = [sys.executable, "-m", "ci.guest", "info", "offsets"]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=100, stdout=subprocess.DEVNULL)
    info, offsets = (unpack_step(line.split()[2]) for line in port.read_text().splitlines())
    assert info.found["said"]["kernel"]["release"] == os.uname().release
    assert (offsets.name, offsets.found["lines"]) == ("offsets", "")
    assert "no database there yet" in offsets.found["stderr"]


def gone(pid):
    """Whether a process has ended, its parent having asked for it or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def guest(tmp_path):
    return Guest(tmp_path, time.monotonic() + 2)


def test_what_hangs_ends_with_all_it_started(guest, tmp_path):
    pid = tmp_path / "pid"
    with pytest.raises(StepError, match="did not end within 1 s"):
        guest._run(["sh", "-c", f"sleep 1000 & echo $! >{pid}; wait"])
    wait_until(lambda: gone(pid.read_text().strip()), 10)


def test_a_step_that_breaks_says_what_broke(guest, monkeypatch):
    monkeypatch.setitem(STEPS, "info", lambda guest: guest._run(["/nonexistent"]))
    assert "No such file or directory: '/nonexistent'" in step("info", guest).found["error"]
