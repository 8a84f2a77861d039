"""What threads left in a map of calls goes when they have ended, and not before it matters."""

import struct
from types import SimpleNamespace

import pytest

from collector.datasets.netflow import Netflow
from collector.threads import forget_ended

RETRANSMISSION = 1 << 63


class Calls(dict):
    """A map of the kernel's, by its keys."""

    def __init__(self, keys, max_entries):
        super().__init__((struct.pack("<Q", key), b"") for key in keys)
        self.spec = SimpleNamespace(max_entries=max_entries)

    def items(self):
        return list(super().items())

    def delete(self, key):
        del self[key]

    def keys_left(self):
        return {struct.unpack("<Q", key)[0] for key in self}


@pytest.fixture
def proc(tmp_path):
    """A process with two threads."""
    for thread in ("7", "8"):
        (tmp_path / "7" / "task" / thread).mkdir(parents=True)
    return tmp_path


LIVING = {7 << 32 | 7, 7 << 32 | 8, 7 << 32 | 8 | RETRANSMISSION}
ENDED = {7 << 32 | 9, 9 << 32 | 9, 9 << 32 | 9 | RETRANSMISSION}


def test_only_those_of_threads_that_have_ended_go(proc):
    calls = Calls(LIVING | ENDED, max_entries=6)
    forget_ended(calls, proc)
    assert calls.keys_left() == LIVING


def test_nothing_goes_before_half_of_the_room_is_taken(proc):
    calls = Calls(LIVING | ENDED, max_entries=12)
    forget_ended(calls, proc)
    assert calls.keys_left() == LIVING | ENDED
    forget_ended(calls, proc, when_over=0)
    assert calls.keys_left() == LIVING


def test_flushes_of_netflow_take_them_out_of_each_map():
    nobodys = {0xFFFF_FFF0 + number for number in range(6)}
    made = object.__new__(Netflow)
    maps = {name: Calls(nobodys, max_entries=6) for name in ("calls", "senders", "pendings", "routes")}
    made.loaded = SimpleNamespace(maps=maps)
    for made._generation in range(1, 4):
        made._forget()
    assert not any(maps.values())
