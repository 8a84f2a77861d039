"""The guess where everything is against it: each time right or honestly not known, never wrong."""

import contextlib
import dataclasses
import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from guessers import hooks, memory
from guessers.facts import SO_MARK
from guessers.guess import guess
from guessers.memory import KernelMemory, ReadFault
from kcompat.fields import CATALOGUE
from kcompat.offsets import State
from tests.kernel.test_guess import busy_neighbour, disagreements, namespaces, wrong

# Which kernel it is makes no difference here.
pytestmark = pytest.mark.thorough

# A raw tracepoint and a function that every kernel has and that nothing we do reaches.
NEVER_FIRES = {"rawtp": "mark_victim", "kprobe": "panic"}


def honest(offsets, oracle):
    """Nothing wrong, and whatever is not known says why."""
    assert not wrong(offsets, oracle)
    silent = [f.name for f, o in offsets.items() if o.state is State.UNKNOWN and not o.reason]
    assert not silent


def test_beside_2000_connections_a_second(oracle):
    with busy_neighbour(2000):
        for _ in range(3):
            assert not disagreements(guess().offsets, oracle)


def test_with_every_processor_twice_as_busy_as_it_can_be(oracle):
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        for _ in range(3):
            assert not disagreements(guess().offsets, oracle)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def test_a_hook_that_is_there_and_never_fires(oracle, monkeypatch):
    silenced = tuple(dataclasses.replace(h, symbols=(NEVER_FIRES[h.backend],))
                     if h.object in ("sk", "socket", "flowi4") else h for h in hooks.HOOKS)
    monkeypatch.setattr(hooks, "HOOKS", silenced)
    monkeypatch.setattr(memory, "HOOKS", silenced)
    try:
        offsets = guess().offsets
    except Exception as error:
        pytest.fail(f"not an answer: {error!r}")
    honest(offsets, oracle)
    assert not [f for f in offsets.known() if f.base in ("sock", "flowi4")]


@pytest.mark.parametrize("every", [2, 3, 7])
def test_memory_that_faults_half_way(oracle, monkeypatch, every):
    count = 0
    read = KernelMemory.read

    def faulty(self, address, size):
        nonlocal count
        count += 1
        if count % every == 0:
            raise ReadFault(address, errno.EFAULT)
        return read(self, address, size)

    monkeypatch.setattr(KernelMemory, "read", faulty)
    honest(guess().offsets, oracle)
    assert count > every


@pytest.mark.parametrize("kept", [256, 700])
def test_windows_that_end_early(oracle, monkeypatch, kept):
    """What lies behind an object may not be mapped: fields beyond the end are not known, the others are right."""
    read = KernelMemory.read
    monkeypatch.setattr(KernelMemory, "read", lambda self, address, size: read(self, address, size)[:kept])
    offsets = guess().offsets
    honest(offsets, oracle)
    assert not [f for f, o in offsets.known().items() if f.base == "sock" and o.offset >= kept]


def test_a_stimulus_that_lies(oracle):
    """Somebody changes the marks and buffers of our sockets all the while."""
    with meddler():
        for _ in range(3):
            honest(guess().offsets, oracle)


def test_nothing_is_left_behind(oracle):
    before = left_behind()
    for _ in range(3):
        guess()
    assert left_behind() == before


def test_every_field_is_told_of(oracle):
    assert set(guess().offsets) == set(CATALOGUE)


@contextlib.contextmanager
def meddler():
    stop = threading.Event()

    def meddle():
        value = 1 << 24
        while not stop.is_set():
            for path in Path("/proc/self/fd").iterdir():
                value = value * 1103515245 + 12345 & 0x7FFFFFFF
                with contextlib.suppress(OSError):
                    meddle_with(path, value)

    def meddle_with(path, value):
        if not str(path.readlink()).startswith("socket:"):
            return
        with socket.socket(fileno=os.dup(int(path.name))) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, value)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096 + value % 60_000)

    thread = threading.Thread(target=meddle, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def left_behind():
    """Network namespaces of ours, descriptors and interfaces, by the kernel's own lists."""
    return namespaces(), len(list(Path("/proc/self/fd").iterdir())), sorted(Path("/sys/class/net").iterdir())
