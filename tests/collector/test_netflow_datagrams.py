"""Datagram flows at the flush: each byte once, whoever owns them, and which owners have ended."""

import errno
import os
import struct
import time
from types import SimpleNamespace

import pytest

from collector.datasets import netflow_datagrams
from collector.datasets.netflow_datagrams import STATE, Datagrams

HERE, THERE = (bytes(10) + b"\xff\xff" + bytes((10, 0, 0, host)) for host in (1, 2))
INCOMING, OUTGOING = 1, 2
DEAD, LIVING = 1 << 23, os.getpid()  # the first is no process's number


class Table(dict):
    def __init__(self, room=1 << 20):
        super().__init__()
        self.room = room

    def read(self):
        return list(self.items())

    def set(self, key, value):
        if len(self) >= self.room:
            raise OSError(errno.E2BIG, "full")
        self[key] = value

    def delete(self, key):
        return self.pop(key, None) is not None


@pytest.fixture
def maps():
    return {"datagrams": Table(), "partners": Table(), "ended": Table()}


@pytest.fixture
def flows(maps):
    return Datagrams(SimpleNamespace(maps=maps), set(), dict.fromkeys(("udp addresses",), 0))


def key(sock):
    return struct.pack("<Q16sHHI", sock, THERE, 53, 4000, 0)


def state(pid, read=0, written=0, birth=1):
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return STATE.pack(birth, read, written, now, HERE, THERE, 4000, 53, 7, pid, b"who", OUTGOING)


def told(flows):
    return [(delta.pid, delta.bytes_read, delta.bytes_written) for delta in flows.read()]


def test_which_owners_have_ended_is_told_the_programs(flows, maps):
    maps["datagrams"].update({key(1): state(DEAD, written=70), key(2): state(LIVING, written=7)})
    assert told(flows) == [(DEAD, 0, 70), (LIVING, 0, 7)]
    assert maps["ended"].keys() == {struct.pack("<I", DEAD)}


def test_what_another_goes_on_with_is_neither_lost_nor_doubled_nor_deleted(flows, maps):
    maps["datagrams"][key(1)] = state(DEAD, written=70)
    told(flows)
    # As the programs do by then.
    maps["datagrams"][key(1)] = state(LIVING, read=5, written=100)
    assert told(flows) == [(LIVING, 5, 30)] and not maps["ended"]


def test_an_owner_whose_number_is_a_processs_again_has_not_ended(flows, maps, monkeypatch):
    maps["datagrams"][key(1)] = state(DEAD, written=70)
    told(flows)
    monkeypatch.setattr(netflow_datagrams, "exists", lambda pid, name: True)
    told(flows)
    assert not maps["ended"]


def test_more_owners_than_there_is_room_for_are_told_when_there_is(flows, maps):
    maps["ended"].room = 2
    for number in range(3):
        maps["datagrams"][key(number)] = state(DEAD + number, written=1)
    told(flows)
    assert len(maps["ended"]) == 2
    kept = {int.from_bytes(pid, "little") for pid in maps["ended"]}
    gone = next(number for number in range(3) if DEAD + number in kept)
    del maps["datagrams"][key(gone)]
    told(flows)
    assert {int.from_bytes(pid, "little") for pid in maps["ended"]} == {DEAD, DEAD + 1, DEAD + 2} - {DEAD + gone}
