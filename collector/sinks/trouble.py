"""Trouble that lasts: when it is news, and when it has lasted too long to be waited for."""

from __future__ import annotations

import time

_TOLD_EVERY_S = 60.0
# A server may well say something new each time.
_REMEMBERED = 64


class Trouble:
    """News when it begins or becomes another, the same once a minute at most, and once when it ends.

    `now` is what is wrong, or nothing.
    """

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


class Patience:
    """With what fails: it may go well again, but not for ever."""

    def __init__(self) -> None:
        self._since: float | None = None

    def over(self, after_s: float) -> bool:
        """It failed: whether nothing has gone well for so long."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since >= after_s

    def well(self) -> None:
        self._since = None
