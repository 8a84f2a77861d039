"""What travels to a server: encoded records, and the two ways in which a server may not take them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from collector.record import Record

# Not os.urandom: a machine that has just booted would have us wait until it has gathered noise.
_KEYS = random.Random()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some records, encoded as the server wants them. `route` says where to, `key` tells it from every other chunk."""

    route: str
    points: int
    payload: bytes
    key: bytes = field(default_factory=lambda: _KEYS.randbytes(8))
    time_ns: int = field(default_factory=time.time_ns)


class Retry(Exception):
    """Not now: the same chunk may be taken later. `after_s` is what the server asked for."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Refused(Exception):
    """Never: the same chunk would be refused again. `points` of it, where the rest was taken."""

    def __init__(self, why: str, points: int | None = None) -> None:
        super().__init__(why)
        self.points = points


class Transport(Protocol):
    """One kind of server. `encode` and `pack` are called by the collector, the rest by the sink's own threads."""

    @property
    def name(self) -> str:
        """Where to, without secrets."""

    def encode(self, records: Sequence[Record]) -> Iterable[Chunk]: ...

    def pack(self, chunk: Chunk) -> Chunk:
        """As it is kept and sent: compressed, where the server can read that."""

    def send(self, chunk: Chunk) -> None:
        """Return when the server has it; raises Retry or Refused."""

    def report(self, what: str) -> None:
        """Tell the server that the collector cannot start, where it has an ear for that."""

    def renew(self) -> None:
        """Secrets may be others now: they are read again before they are shown. Called by the collector."""

    def close(self) -> None: ...
