"""Trouble that lasts: news when it begins or becomes another, the same once a minute at most, and once when it ends."""

from __future__ import annotations

import time

_TOLD_EVERY_S = 60.0
# A server may well say something new each time.
_REMEMBERED = 64


class Trouble:
    """`now` is what is wrong, or nothing."""

    def __init__(self) -> None:
        self.now = ""
        self._told: dict[str, float] = {}
        # What was told last of the trouble that there is.
        self._said = ""

    def begins(self, what: str) -> bool:
        """Whether that is to be told."""
        self.now = what
        now = time.monotonic()
        self._told = {told: at for told, at in self._told.items() if now - at < _TOLD_EVERY_S}
        if what == self._said or what in self._told:
            return False
        if len(self._told) >= _REMEMBERED:
            self._told.clear()
        self._told[what] = now
        self._said = what
        return True

    def ends(self) -> bool:
        """Whether that is to be told: its beginning was."""
        told, self.now, self._said = bool(self._said), "", ""
        return told
