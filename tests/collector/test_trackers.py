"""What a namespace's tracker is asked for is known to be whole or not."""

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


def test_who_asks_once_is_told_of_it(cut_off):
    told = []
    assert trackers.ask_all(lambda *what: told.append(what)) == {7: "Connection timed out"}
    assert trackers.ask_all(lambda *what: told.append(what)) == {}
