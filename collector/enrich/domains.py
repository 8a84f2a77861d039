"""Which name stands behind an address: what DNS answers said lately, per network namespace, within bounds."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from collector.protocols.dns import question_text

SHORTEST_S, LONGEST_S = 60, 3600
BOUND = 1 << 16


class _Known(NamedTuple):
    question: bytes
    until_s: float


class Domains:
    """Answers (namespace, address) with the name asked for last that led there; the longest unheard goes first.

    A name stays for the TTL of its answer, but never shorter than a minute, for connections outlive answers, nor
    longer than an hour. Addresses are 16 bytes, v4-mapped for IPv4. Names are kept as they are on the wire, for many
    more are learnt than are ever asked for. Safe with several threads.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._known: OrderedDict[tuple[int, bytes], _Known] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, netns: int, question: bytes, addresses: Iterable[tuple[bytes, int]],
              now_s: float | None = None) -> None:
        """That this question (`collector.protocols.dns`) was answered with these (address, TTL in seconds)."""
        now_s = time.monotonic() if now_s is None else now_s
        with self._lock:
            for address, ttl_s in addresses:
                key = (netns, address)
                self._known[key] = _Known(question, now_s + min(max(ttl_s, SHORTEST_S), LONGEST_S))
                self._known.move_to_end(key)
                if len(self._known) > self._bound:
                    self._known.popitem(last=False)

    def name(self, netns: int, address: bytes, now_s: float | None = None) -> str | None:
        """The name, without the dot at its end; None when no answer said one, or too long ago."""
        with self._lock:
            known = self._known.get((netns, address))
            if known is None:
                return None
            if (time.monotonic() if now_s is None else now_s) >= known.until_s:
                del self._known[(netns, address)]
                return None
        return question_text(known.question)[0] or None
