"""What is said on standard error, for people or as JSON; of lines that repeat themselves only so many a minute."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

_MINUTE_S = 60.0
_MAX_KINDS = 1024


class RateLimit(logging.Filter):
    """Lets `per_minute` lines of a kind through; the first of the next minute says how many were left out.

    Lines are of a kind that have the same template, before values are filled in, and the same source.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._per_minute = per_minute
        self._clock = clock
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, str(record.msg))
        now = self._clock()
        begun, count = self._kinds.get(kind, (now, 0))
        if now - begun >= _MINUTE_S:
            if (left_out := count - self._per_minute) > 0:
                record.msg, record.args = f"{record.getMessage()} (and {left_out} more like it)", ()
            begun, count = now, 0
        if len(self._kinds) >= _MAX_KINDS and kind not in self._kinds:
            self._kinds.clear()
        self._kinds[kind] = begun, count + 1
        return count < self._per_minute


def json_line(message: str, level: str, source: str, now_s: float | None = None) -> str:
    """One object: ISO time with zone, level, source, message."""
    when = datetime.fromtimestamp(time.time() if now_s is None else now_s, UTC)
    return json.dumps({"time": when.isoformat(timespec="milliseconds"), "level": level, "source": source,
                       "message": message})


def without_secrets(words: str) -> str:
    """URLs in it lose user, password and query, where tokens stand; a / or ? in a password may be no %2F or %3F."""
    return re.sub(r"(?<=://)(?:[^?\s'\"]*@)?(?:[^/\s'\"]*@)?|(?<=\S)[?&][^\s'\"]*=[^\s'\"]*", "", words)
