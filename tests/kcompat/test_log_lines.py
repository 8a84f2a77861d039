"""Lines that repeat are counted instead of said, secrets are not said at all, and JSON is JSON."""

import json
import logging

import pytest

from kcompat.log_lines import RateLimit, json_line, without_secrets


@pytest.fixture
def said():
    """said(count, template, *values) -> the lines that came through; said.clock[0] is the time."""
    clock, lines = [0.0], []
    log = logging.Logger("test")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    handler.addFilter(RateLimit(3, lambda: clock[0]))
    log.addHandler(handler)

    def say(count, template, *values):
        lines.clear()
        for _ in range(count):
            log.warning(template, *values)
        return list(lines)

    say.clock = clock
    return say


def test_of_a_kind_only_so_many_a_minute_are_said_and_the_rest_is_counted(said):
    assert said(23, "lost %d packets", 5) == ["lost 5 packets"] * 3
    assert said(1, "lost %d packets", 6) == []
    assert said(1, "something else") == ["something else"]
    said.clock[0] = 61
    assert said(2, "lost %d packets", 7) == ["lost 7 packets (and 21 more like it)", "lost 7 packets"]


def test_without_noise_nothing_is_left_out(said):
    for minute in range(5):
        said.clock[0] = 61.0 * minute
        assert said(3, "lost %d packets", 5) == ["lost 5 packets"] * 3


def test_many_kinds_are_bounded(said):
    for kind in range(3000):
        assert said(1, f"kind {kind}") == [f"kind {kind}"]


def test_a_json_line_is_one_object():
    line = json_line('with "quotes"\nand a break', "warning", "collector.pipeline", 0.25)

    assert "\n" not in line
    assert json.loads(line) == {"time": "1970-01-01T00:00:00.250+00:00", "level": "warning",
                                "source": "collector.pipeline", "message": 'with "quotes"\nand a break'}


@pytest.mark.parametrize("words, shown", [
    ("https://user:hunter2@host/path", "https://host/path"),
    ("http://host/w?token=tkn_x&a=b rest", "http://host/w rest"),
    ("https://user:hun/ter2@host/path", "https://host/path"), ("https://user:hun@ter2@host/path", "https://host/path"),
    ("https://user:hun?ter2@host/path of", "https://host/path of"),
    ("https://u:h@u/n@t?er2@host/path?token=x it is", "https://host/path it is"),
    ("http://host?mail=a@b&token=tkn_x rest", "http://b rest"), ("http://h/w?mail=a@b&token=tkn_x", "http://h/w"),
    ("http://host/ me@home", "http://host/ me@home"),
    ("['http://a:b@c/?t=1', 3]", "['http://c/', 3]"), ("why? because", "why? because"), ("plain", "plain")])
def test_what_may_be_a_password_is_not_said(words, shown):
    assert without_secrets(words) == shown
