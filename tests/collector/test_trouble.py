"""Trouble is told when it begins, changes and ends; what comes and goes is not told each time."""

import pytest

from collector.sinks.trouble import Trouble


@pytest.fixture
def clock(monkeypatch):
    """clock[0] is the time."""
    now = [1000.0]
    monkeypatch.setattr("collector.sinks.trouble.time.monotonic", lambda: now[0])
    return now


def test_what_lasts_is_told_once_and_so_is_its_end(clock):
    trouble = Trouble()
    told = []
    for clock[0] in range(1000, 1300, 10):
        told.append(trouble.begins("down"))
    assert told == [True, *[False] * 29]
    assert (trouble.now, trouble.ends(), trouble.now, trouble.ends()) == ("down", True, "", False)


def test_what_comes_back_soon_and_lasts_is_told_after_a_minute_and_so_is_its_end(clock):
    trouble = Trouble()
    assert trouble.begins("down") and trouble.ends()
    told = []
    for clock[0] in range(1010, 1200, 10):
        told.append(trouble.begins("down"))
    assert told == [*[False] * 5, True, *[False] * 13]
    assert trouble.ends()


def test_what_comes_and_goes_is_told_once_a_minute_with_as_many_ends(clock):
    trouble = Trouble()
    told = []
    for clock[0] in range(1000, 1120, 10):
        told.append((trouble.begins("down"), trouble.ends()))
    assert told == [(True, True), *[(False, False)] * 5] * 2


def test_what_becomes_another_and_again_the_first_is_told_to_be_that(clock):
    trouble = Trouble()
    assert trouble.begins("down") and trouble.begins("refused")
    told = []
    for clock[0] in range(1010, 1200, 10):
        told.append(trouble.begins("down"))
    assert told.index(True) == 5 and sum(told) == 1
    assert trouble.ends()
