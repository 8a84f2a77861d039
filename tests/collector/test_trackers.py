"""What a namespace's tracker is asked for is known to be whole or not."""

import errno
import os
from pathlib import Path

import pytest

from collector import trackers


@pytest.fixture
def cut_off(monkeypatch):
    """One namespace, whose tracker tells one of two the first time it is asked and then nothing more, later both."""
    answers = [TimeoutError("timed out")]

    class Asker:
        def dump(self):
            yield "one"
            if answers:
                raise answers.pop()
            yield "other"

        def close(self):
            pass

    class Tracker:
        def __init__(self):
            self.end, self.other_end = os.pipe()

        def fileno(self):
            return self.end

        def close(self):
            os.close(self.end)
            os.close(self.other_end)

    monkeypatch.setattr(trackers, "is_loaded", lambda: True)
    monkeypatch.setattr(trackers, "doors", lambda: {7: Path("/door")})
    monkeypatch.setattr(trackers, "visit", lambda door, made: Tracker() if made is trackers.Tracker else Asker())


def test_a_dump_that_is_cut_off_is_asked_for_again(cut_off, caplog):
    told = []
    source = trackers.Trackers(lambda *what: told.append(what), lambda _: None)
    source.rescan()
    (said,) = [record.message for record in caplog.records]
    assert said.endswith("namespace 7 are not all known yet: Connection timed out")
    source.rescan()
    source.rescan()
    source.close()

    assert told == [(7, False, "one"), (7, False, "one"), (7, False, "other")]


def test_one_that_never_answers_is_not_waited_for_at_every_look(cut_off, monkeypatch):
    asked, there = [], {1: Path("/1"), 2: Path("/2")}

    def ask(door, netns, told):
        asked.append(netns)
        raise OSError(errno.ETIMEDOUT, "timed out")

    monkeypatch.setattr(trackers, "_ask", ask)
    monkeypatch.setattr(trackers, "doors", lambda: there)
    source = trackers.Trackers(lambda *_: None, lambda _: None)
    source.rescan()
    assert sorted(asked) == [1, 2]
    for _ in range(3):
        source.rescan()
    assert len(asked) == 3
    monkeypatch.setattr(trackers, "_CATCH_UP_S", -1.0)
    source._catch_up_at_s = 0.0
    source.rescan()
    source.close()

    assert sorted(asked[2:]) == [1, 2]  # each gets its turn


def test_who_asks_once_is_told_of_it(cut_off):
    told = []
    assert trackers.ask_all(lambda *what: told.append(what)) == {7: "Connection timed out"}
    assert trackers.ask_all(lambda *what: told.append(what)) == {}
