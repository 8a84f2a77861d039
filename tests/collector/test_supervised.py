"""One dataset's life: what it counts never falls, what fails is tried again, and nobody else notices."""

import struct
from collections import Counter

import pytest

from collector import supervised
from collector.canary import Refuted
from collector.config import Options
from collector.dataset import Dataset, Setup
from collector.record import Record
from collector.supervised import Supervised
from kcompat.errors import Missing, Unsupported
from kcompat.hook_status import HookState, HookStatus
from kcompat.offsets import Offsets

SETUP = Setup(Options("box"), Offsets(), 0)
RECORD = Record("test", {}, {"count": 1}, 1)


class Scripted:
    """A dataset that does what it is told: real in all but what it looks at."""

    how = "by hand"
    loaded = None

    def __init__(self, setup):
        self.hooks = [HookStatus("program", "hook", HookState.ATTACHED)]
        self.losses = {"packets": 3}
        self.left_out = Counter(unasked=2)
        self.closed = False

    def flush(self, time_ns):
        return [RECORD] * 5

    def sample(self, one_of):
        return one_of == 1

    def close(self):
        self.closed = True


def made(start, off=None):
    one = Supervised(Dataset("test", start), off)
    one.start(SETUP)
    return one


def failing(*errors):
    """Fails once with each of them, then runs."""
    left = list(errors)

    def start(setup):
        if left:
            raise left.pop(0)
        return Scripted(setup)

    return start


def test_one_that_runs_says_what_it_does():
    one = made(Scripted)

    assert len(one.flush(1)) == 5
    status = one.status()
    assert (status.state, status.how, status.records, status.reason) == (HookState.ATTACHED, "by hand", 5, "")
    assert status.lost == {"packets": 3} and status.left_out == {"unasked": 2} and status.retry_in_s is None
    assert status.hooks == (HookStatus("program", "hook", HookState.ATTACHED),)


def test_counts_of_an_earlier_run_are_kept():
    one = made(Scripted)
    for _ in range(3):
        one.flush(1)
        one.close()
        one.start(SETUP)

    one.flush(1)

    assert one.lost == {"packets": 12} and one.left_out == Counter(unasked=8)
    assert one.status().records == 20 and one.status().restarts == 3


@pytest.mark.parametrize("error, state", [(Missing("tracefs is not mounted"), HookState.MISSING),
                                          (Refuted("test", ()), HookState.REFUSED),
                                          (OSError(28, "No space left on device"), HookState.MISSING),
                                          (struct.error("argument out of range"), HookState.MISSING)])
def test_one_that_cannot_start_says_why_and_when_it_is_tried_again(error, state):
    told = []

    one = made(failing(error), lambda name, why: told.append((name, str(why))))

    status = one.status()
    assert status.state is state and 0 < status.retry_in_s <= 30
    assert status.reason == told[0][1] and str(error) in status.reason
    assert one.flush(1) == []


def test_where_bpf_is_forbidden_that_is_the_reason_not_what_comes_of_it(monkeypatch):
    def forbidden():
        raise Unsupported("the kernel forbids BPF here")

    monkeypatch.setattr(supervised, "require_bpf", forbidden)
    programmed = Supervised(Dataset("test", failing(Missing("no known offset")), render=lambda offsets, options: ""))

    assert not programmed.start(SETUP) and programmed.status().reason == "the kernel forbids BPF here"
    assert made(Scripted).running  # one without programs does not care


def test_the_pause_grows_up_to_an_hour_and_is_short_again_after_a_success(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(supervised.time, "monotonic", lambda: now[0])
    one = made(failing(*[Missing("not yet")] * 9))
    pauses = []
    while not one.running:
        pauses.append(one.retry_at - now[0])
        now[0] = one.retry_at
        one.start(SETUP)

    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    one.close()
    one.row = Dataset("test", failing(Missing("gone")))
    one.start(SETUP)
    assert one.retry_at - now[0] == 30


def test_a_cause_is_told_once(caplog):
    one = made(failing(Missing("not yet"), Missing("not yet"), Missing("something else")))
    one.start(SETUP)
    one.start(SETUP)
    one.start(SETUP)

    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [words.partition(";")[0] for words in said] == ["not yet", "something else", "test runs now"]


def test_one_that_fails_while_it_runs_is_closed_and_tried_again(caplog):
    one = made(Scripted)
    first = one.running
    first.flush = lambda time_ns: 1 / 0

    assert one.flush(1) == []
    assert first.closed and one.running is None and "it failed: division by zero" in one.status().reason
    assert one.start(SETUP) and len(one.flush(1)) == 5


def test_a_hook_that_works_in_part_makes_it_degraded():
    one = made(Scripted)
    one.running.hooks.append(HookStatus("other", "hook", HookState.DEGRADED, "half of it is sampled away"))

    status = one.status()

    assert status.state is HookState.DEGRADED and status.reason == "other: half of it is sampled away"
