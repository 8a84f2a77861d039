import signal
import threading
import time
from pathlib import Path

import pytest

from guessers.namespace import in_own_thread, stop_if_told


def test_the_thread_bears_its_nonce_as_a_name():
    nonce, name = in_own_thread(lambda nonce: (nonce, Path("/proc/thread-self/comm").read_bytes().strip()))
    assert nonce == name
    assert in_own_thread(lambda other: other) != nonce


def test_what_goes_wrong_in_the_thread_goes_wrong_for_the_caller():
    def work(nonce):
        raise ValueError("the very error")

    with pytest.raises(ValueError, match="the very error"):
        in_own_thread(work)


def test_ctrl_c_reaches_the_caller_after_the_thread_has_cleaned_up():
    cleaned = []

    def work(nonce):
        try:
            while True:
                stop_if_told()
                time.sleep(0.001)
        finally:
            cleaned.append(True)

    timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        in_own_thread(work)
    timer.join()
    assert cleaned == [True]


def test_other_threads_are_never_told_to_stop():
    stop_if_told()
