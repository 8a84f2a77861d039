"""What takes its time and is at work all the while: somebody is told so, for as long as it may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What a start may take, of a kernel that nobody knows: a compilation and a guess. The systemd unit has the same.
LONGEST_S = 300.0
_EVERY_S = 5.0


@contextmanager
def told_alive(alive: Callable[[], None], longest_s: float = LONGEST_S, every_s: float = _EVERY_S) -> Iterator[None]:
    """Calls it again and again, from a thread of its own, until the work is done or has taken too long to be well."""
    done = threading.Event()
    end_s = time.monotonic() + longest_s

    def tell() -> None:
        while time.monotonic() < end_s and not done.wait(every_s):
            alive()

    thread = threading.Thread(target=tell, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
