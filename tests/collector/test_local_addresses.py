"""Local addresses of datagram sockets bound to none: what the route says, in namespaces that are there and are not."""

import socket
from types import SimpleNamespace

import pytest

from collector import local_addresses
from collector.local_addresses import LocalAddresses

MAPPED = bytes(10) + b"\xff\xff"
NOWHERE, NOBODY = 7, 0


@pytest.fixture
def looks(monkeypatch):
    """One entry for every look at all processes, which finds none in any namespace."""
    looks = []

    def look():
        looks.append(None)
        return {}

    monkeypatch.setattr(local_addresses, "one_process_each", look)
    return looks


def remotes(count):
    return [MAPPED + number.to_bytes(4) for number in range(0x0A000000, 0x0A000000 + count)]


def test_in_our_own_namespace_it_is_what_the_route_says():
    loopback = MAPPED + socket.inet_aton("127.0.0.1")
    assert LocalAddresses().towards(0, NOBODY, loopback) == loopback


def test_that_a_namespace_is_gone_is_found_out_once_a_flush(looks):
    addresses = LocalAddresses()
    for flushes in (1, 2):
        addresses.begin()
        assert not any(addresses.towards(NOWHERE, NOBODY, remote) for remote in remotes(1000))
        assert len(looks) == flushes


@pytest.fixture
def netns(tmp_path, monkeypatch):
    """The number of a namespace that is there as long as `doors` has its door, where `routes` are what it answers."""
    door, doors, routes = tmp_path / "net", [], []
    door.touch()
    doors.append(door)
    monkeypatch.setattr(local_addresses, "_doors", lambda pid: doors)
    monkeypatch.setattr(local_addresses, "_route_in", lambda fd, remote, nonce: routes[-1])
    return SimpleNamespace(number=door.stat().st_ino, door=door, doors=doors, routes=routes)


@pytest.fixture
def others(monkeypatch):
    """What looks at all processes find, one after the other, and each time a namespace was asked."""
    made = SimpleNamespace(found=[], looks=0, asked=[])

    def look():
        made.looks += 1
        return made.found.pop(0) if made.found else {}

    def through(door, netns, remote):
        if (netns, door.parts[2]) not in made.there:
            raise FileNotFoundError(door)
        made.asked.append((netns, remote))
        return ONE

    made.there = {(NOWHERE, "300")}
    monkeypatch.setattr(local_addresses, "one_process_each", look)
    monkeypatch.setattr(local_addresses, "_through", through)
    return made


def test_of_processes_that_have_ended_one_look_at_all_serves_a_flush(others):
    others.found = [{NOWHERE: 300}, {NOWHERE: 300}]
    addresses = LocalAddresses()
    for flushes in (1, 2):
        addresses.begin()
        for remote in remotes(3):
            # Numbers no process has.
            for pid in range(1 << 23, (1 << 23) + 100):
                assert addresses.towards(NOWHERE, pid + 1000 * flushes, remote) == ONE
        assert (others.looks, len(others.asked)) == (flushes, 3 * flushes)


def test_another_is_looked_for_when_the_one_that_was_found_has_ended_too(others):
    others.found = [{NOWHERE: 300}, {NOWHERE: 400}, {}]
    addresses = LocalAddresses()
    addresses.begin()
    one, another, third = remotes(3)
    assert addresses.towards(NOWHERE, NOBODY, one) == ONE
    others.there = {(NOWHERE, "400")}
    assert addresses.towards(NOWHERE, NOBODY, another) == ONE
    others.there = set()
    assert addresses.towards(NOWHERE, NOBODY, third) is None and others.looks == 3


ONE, OTHER = MAPPED + b"\x0a\0\0\1", MAPPED + b"\x0a\0\0\2"


def test_another_namespace_may_get_the_number_of_one_that_is_gone(netns):
    remote, = remotes(1)
    addresses = LocalAddresses()
    netns.doors.clear()
    assert addresses.towards(netns.number, NOBODY, remote) is None

    netns.doors.append(netns.door)
    netns.routes.append(ONE)
    addresses.begin()
    assert addresses.towards(netns.number, NOBODY, remote) == ONE


def test_what_was_told_of_one_process_is_not_said_of_another_with_a_namespace_of_that_number(netns):
    remote, = remotes(1)
    addresses = LocalAddresses()
    for pid, local in ((100, ONE), (200, OTHER)):
        netns.routes.append(local)
        assert addresses.towards(netns.number, pid, remote) == local
    assert addresses.towards(netns.number, 100, remote) == ONE


def test_that_an_address_is_another_now_is_noticed_and_what_cannot_be_asked_again_stays(netns, monkeypatch):
    remote, = remotes(1)
    addresses, now_s = LocalAddresses(), [1000.0]
    monkeypatch.setattr(local_addresses, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    netns.routes.append(ONE)
    assert addresses.towards(netns.number, NOBODY, remote) == ONE
    netns.routes.append(OTHER)
    for later_s, told in ((60, ONE), (600, OTHER)):
        now_s[0] += later_s
        assert addresses.towards(netns.number, NOBODY, remote) == told
    netns.doors.clear()
    now_s[0] += 600
    assert addresses.towards(netns.number, NOBODY, remote) == OTHER
