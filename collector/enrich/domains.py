"""Which name stands behind an address: what DNS answers said lately, per network namespace, within bounds."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from enum import IntEnum
from typing import NamedTuple

from collector.protocols.dns import question_text

SHORTEST_S, LONGEST_S = 60, 3600
# How long a name that a client said to its server is believed: it has no TTL.
SAID_S = 600
BOUND = 1 << 16
# Two labels at least, the last of them no number: neither `localhost` nor 10.0.0.1 tells whose an address is.
_NAME = re.compile(r"(?=.{4,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+"
                   r"(?!\d+\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class _Known(NamedTuple):
    question: bytes
    until_s: float


class Said(IntEnum):
    """Where a client said the name of whom it spoke to; the greater is believed before the lesser."""

    HOST = 1
    SNI = 2


class _Told(NamedTuple):
    by: Said
    name: str
    until_s: float


class Domains:
    """Answers (namespace, address) with the name asked for last that led there; the longest unheard goes first.

    A name stays for the TTL of its answer, but never shorter than a minute, for connections outlive answers, nor
    longer than an hour. Addresses are 16 bytes, v4-mapped for IPv4. Names are kept as they are on the wire, for many
    more are learnt than are ever asked for. Where no answer said one, what a client called its server counts: the
    name in its TLS greeting (SNI), then in its Host header. Safe with several threads.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._known: OrderedDict[tuple[int, bytes], _Known] = OrderedDict()
        self._said: OrderedDict[tuple[int, bytes], _Told] = OrderedDict()
        self._ended: set[int] = set()
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

    def say(self, netns: int, address: bytes, name: str, by: Said, now_s: float | None = None) -> None:
        """That a client called the server at this address so. Addresses in a name's place, and no names, are none."""
        name = name.rstrip(".").lower()
        if not _NAME.fullmatch(name):
            return
        now_s = time.monotonic() if now_s is None else now_s
        key = (netns, address)
        with self._lock:
            before = self._said.get(key)
            if before and before.by > by and now_s < before.until_s:
                return
            self._said[key] = _Told(by, name, now_s + SAID_S)
            self._said.move_to_end(key)
            if len(self._said) > self._bound:
                self._said.popitem(last=False)

    def end(self, netns: int) -> None:
        """That a namespace is gone: its names still tell of what it did, until another has its number (`begin`)."""
        self._ended.add(netns)

    def begin(self, namespaces: Collection[int]) -> None:
        """That these are there: what was known in others of their numbers is forgotten, in one pass for all."""
        others = self._ended.intersection(namespaces)
        if not others:
            return
        self._ended -= others
        with self._lock:
            for key in [key for key in self._known if key[0] in others]:
                del self._known[key]
            for key in [key for key in self._said if key[0] in others]:
                del self._said[key]

    def names(self) -> Callable[[int, bytes], str | None]:
        """As `name`, for many questions in a row: of most addresses nobody said anything until now, in no namespace."""
        with self._lock:
            addresses = {address for known in (self._known, self._said) for _, address in known}
        name = self.name
        return lambda netns, address: name(netns, address) if address in addresses else None

    def name(self, netns: int, address: bytes, now_s: float | None = None) -> str | None:
        """The name, without the dot at its end; None when no answer said one, or too long ago."""
        key = (netns, address)
        # Of most addresses nobody said anything, which is seen without the lock.
        if key not in self._known and key not in self._said:
            return None
        with self._lock:
            known, told = self._known.get(key), self._said.get(key)
            now_s = time.monotonic() if now_s is None else now_s
            if known and now_s < known.until_s:
                return question_text(known.question)[0] or None
            self._known.pop(key, None)
            if told and now_s < told.until_s:
                return told.name
            self._said.pop(key, None)
            return None
