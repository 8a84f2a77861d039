"""What httpflow's canary makes of what it sees: pure."""

import pytest

from collector.http_canary import Asked, compare
from kcompat.fields import find

V4 = bytes(10) + b"\xff\xff"
MADE = Asked(True, V4 + b"abcd", 2000, V4 + b"efgh", 3000, 7, "GET", "/1", 204, "1.0")
ANSWERED = MADE._replace(asks=False, local=MADE.remote, local_port=3000, remote=MADE.local, remote_port=2000)
UNSEEN = (find("skc_family"),)


def faults(*seen):
    return list(compare([MADE, ANSWERED], seen, UNSEEN))


def test_what_came_out_as_it_was_made_has_no_fault():
    other = MADE._replace(path="/of somebody else")
    assert faults(MADE, ANSWERED, other) == []
    assert faults(MADE._replace(local_port=65535), ANSWERED) == []


def test_what_was_not_seen_may_still_come_and_twice_is_wrong():
    (fault,) = faults(MADE)
    assert "no answer of GET /1" in fault.words and fault.time_mends and fault.fields == UNSEEN
    (fault,) = faults(MADE, MADE, ANSWERED)
    assert "2 times" in fault.words


@pytest.mark.parametrize("what, value, field", [
    ("local", V4 + b"xxxx", "skc_rcv_saddr"), ("remote", V4 + b"xxxx", "skc_daddr"), ("local_port", 1, "skc_num"),
    ("remote_port", 1, "skc_dport"), ("netns", 8, "ns.inum"), ("status_code", 200, "skc_family"),
    ("method", "PUT", "skc_family")])
def test_what_came_out_wrong_is_blamed_on_its_field(what, value, field):
    (fault,) = faults(MADE._replace(**{what: value}), ANSWERED)
    assert what in fault.words and find(field) in fault.fields
