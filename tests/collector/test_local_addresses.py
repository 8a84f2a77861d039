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
    monkeypatch.setattr(local_addresses, "_doors", lambda netns, pid: doors)
    monkeypatch.setattr(local_addresses, "_route_in", lambda fd, remote, nonce: routes[-1])
    return SimpleNamespace(number=door.stat().st_ino, door=door, doors=doors, routes=routes)


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
