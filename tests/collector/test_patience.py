"""Who works for long is told to be alive, and who hangs is not for ever."""

import threading

from collector.patience import told_alive


def test_it_is_told_as_long_as_it_is_at_work():
    told = threading.Semaphore(0)
    with told_alive(told.release, every_s=0.01):
        assert all(told.acquire(timeout=20) for _ in range(3))
    while told.acquire(blocking=False):
        pass

    assert not told.acquire(timeout=0.1)


def test_what_hangs_is_not_told_to_be_alive_any_more():
    told, hung = threading.Semaphore(0), threading.Event()

    def work():
        with told_alive(told.release, longest_s=0.1, every_s=0.01):
            hung.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while told.acquire(timeout=2):
            pass
        assert thread.is_alive()  # it has not ended, and nobody says any more that it is well
    finally:
        hung.set()
        thread.join()
