"""A service manager hears what sd_notify(3) says it would; nobody else hears anything."""

import os
import socket

import pytest

from kcompat.service_manager import ServiceManager


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    """(its socket, the environment it gives)"""
    address = str(tmp_path / "notify") if request.param == "file" else f"@kcompat-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0"))
        listening.setblocking(False)
        yield listening, {"NOTIFY_SOCKET": address}


def heard(listening):
    words = []
    while True:
        try:
            words.append(listening.recv(4096).decode())
        except BlockingIOError:
            return words


def test_it_hears_of_the_beginning_and_of_the_end(manager):
    listening, environment = manager
    ours = ServiceManager(environment)
    ours.ready()
    ours.alive()
    for words in ("no dataset runs", "no dataset runs", "collecting netflow"):
        ours.does(words)
    ours.stopping()
    assert heard(listening) == ["READY=1", "STATUS=no dataset runs", "STATUS=collecting netflow", "STOPPING=1"]


def test_a_watchdog_is_told_twice_in_its_time_and_no_more_often(manager):
    listening, environment = manager
    ours = ServiceManager(environment | {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())})
    for _ in range(100):
        ours.alive()
    assert heard(listening) == ["WATCHDOG=1"]


def test_the_watchdog_of_another_process_is_not_ours(manager):
    listening, environment = manager
    ServiceManager(environment | {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}).alive()
    assert not heard(listening)


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1234"])
def test_where_nobody_listens_nothing_happens(address):
    ours = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "nonsense"})
    ours.ready()
    ours.alive()
    ours.stopping()
