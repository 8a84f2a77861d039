"""Signals of a program that runs for long: the first that ends it asks, SIGHUP has it read its configuration again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Caught:
    """Catches them while it is entered. A second SIGINT is a KeyboardInterrupt: it does not wait for the end.

    A handler may have interrupted anything, `stop` in the middle of its lock too. So it only writes to a pipe, and
    whoever reads that does the rest.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        """What asked for the end, in its order."""
        self.stop = threading.Event()
        self._hung_up, self._ended = threading.Event(), False
        self._first_s = 0.0
        self._before: dict[int, Any] = {}
        self._read, self._write = -1, -1

    @property
    def since_s(self) -> float:
        """How long ago the end was asked for."""
        return time.monotonic() - self._first_s

    def on_hangup(self, reload: Callable[[], None]) -> None:
        """From now on SIGHUP has `reload` called, in a thread of its own; one that came before has it called at once.

        One call after the other: what is read later is adopted later. SIGHUP during a call is for one call more.
        """
        threading.Thread(target=self._reload, args=(reload,), name="reload", daemon=True).start()

    def __enter__(self) -> Caught:
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._before.items():
            signal.signal(number, old)
        os.close(self._write)
        # Not waited for: a file is read that may be on a disk which does not answer.
        self._ended = True
        self._hung_up.set()
        self._thread.join()
        os.close(self._read)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGHUP:
            if number == signal.SIGINT and self.numbers:
                raise KeyboardInterrupt
            if not self.numbers:
                self._first_s = time.monotonic()
            self.numbers.append(number)
        # Full: whoever reads has not got to the thousands before yet.
        with suppress(BlockingIOError):
            os.write(self._write, bytes((number,)))

    def _listen(self) -> None:
        while numbers := os.read(self._read, 1):
            if numbers[0] == signal.SIGHUP:
                self._hung_up.set()
            else:
                self.stop.set()

    def _reload(self, reload: Callable[[], None]) -> None:
        while self._hung_up.wait() and not self._ended:
            self._hung_up.clear()
            try:
                reload()
            except Exception:
                # Whatever it was, the next SIGHUP is heard.
                log.exception("SIGHUP")
