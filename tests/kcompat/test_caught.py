"""Signals at any moment: the end is always heard, and what was there before is there again."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kcompat.caught import Caught

# Signals that fall into the very moments in which the main thread has the lock of what they are to set.
STORM = """
import os, random, signal, threading, time
from kcompat.caught import Caught

def send(after_s):
    time.sleep(after_s)
    os.kill(os.getpid(), signal.SIGTERM)

for number in range(4000):
    with Caught() as caught:
        threading.Thread(target=send, args=(random.random() / 2000,)).start()
        while not caught.stop.wait(1e-6):
            pass
print("ended")
"""


def test_a_signal_in_the_middle_of_a_wait_is_heard():
    done = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "ended\n"


def test_what_asks_for_the_end_and_what_does_not():
    heard = threading.Event()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Caught() as caught:
        caught.on_hangup(heard.set)
        os.kill(os.getpid(), signal.SIGHUP)
        assert heard.wait(10)
        assert (caught.numbers, caught.stop.is_set()) == ([], False)
        os.kill(os.getpid(), signal.SIGINT)
        assert caught.stop.wait(10)
        assert caught.numbers == [signal.SIGINT] and 0 <= caught.since_s < 10
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_hangup_before_anybody_can_read_again_is_remembered():
    heard = threading.Event()
    with Caught() as caught:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught.stop.wait(10)  # what came before is read by now
        caught.on_hangup(heard.set)
        assert heard.wait(10)


def test_who_reads_later_adopts_later_and_a_failure_is_not_the_last_word(caplog):
    first, go_on, last = (threading.Event() for _ in range(3))
    calls, adopted = [], []

    def reload():
        calls.append(read := len(calls))
        if read == 0:
            first.set()
            go_on.wait(10)
        adopted.append(read)
        if read == 1:
            last.set()
        raise ValueError("wrong")

    with Caught() as caught:
        caught.on_hangup(reload)
        os.kill(os.getpid(), signal.SIGHUP)
        assert first.wait(10)
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)  # in which a second thread would overtake
        go_on.set()
        assert last.wait(10)
    assert adopted == [0, 1] and {record.message for record in caplog.records} == {"SIGHUP"}
