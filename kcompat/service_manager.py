"""What systemd, or who else started us with a NOTIFY_SOCKET, is told: that we are ready, alive, about to end."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class ServiceManager:
    """As sd_notify(3) has it; says nothing where nobody listens, and what cannot be said is left unsaid."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        watchdog_us = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Twice in the time after which we would be taken for dead.
        self._every_s = int(watchdog_us) / 2e6 if ours and watchdog_us.isdigit() else 0.0
        self._due_s = 0.0
        self._doing = ""

    def ready(self) -> None:
        self._tell("READY=1")

    def does(self, words: str) -> None:
        """What `systemctl status` says; told when it is something else than before."""
        if words != self._doing:
            self._doing = words
            self._tell(f"STATUS={words}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """To be called often: tells it no more often than is needed."""
        now_s = time.monotonic()
        if self._every_s and now_s >= self._due_s:
            self._due_s = now_s + self._every_s
            self._tell("WATCHDOG=1")

    def _tell(self, words: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        # A name that begins with a NUL is of no file.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                speaker.sendto(words.encode(), address)
        except OSError:
            pass
