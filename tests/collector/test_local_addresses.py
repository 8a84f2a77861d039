"""Local addresses of datagram sockets bound to none: what the route says, in namespaces that are there and are not."""

import socket

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


def test_another_namespace_may_get_the_number_of_one_that_is_gone(tmp_path, monkeypatch):
    door = tmp_path / "net"
    door.touch()
    number, (remote,), doors = door.stat().st_ino, remotes(1), []
    monkeypatch.setattr(local_addresses, "_doors", lambda netns, pid: doors)
    monkeypatch.setattr(local_addresses, "_route_in", lambda fd, remote, nonce: MAPPED)
    addresses = LocalAddresses()
    assert addresses.towards(number, NOBODY, remote) is None

    doors.append(door)
    addresses.begin()
    assert addresses.towards(number, NOBODY, remote) == MAPPED
