"""Asks each source of offsets in turn, only for what is still missing, and keeps who said what."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, Offsets, State


class Resolver(Protocol):
    """A source of offsets. `resolve` raises KcompatError when the source cannot be used at all."""

    name: str

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterable[Offset]: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one source was asked and gave: for the user who wants to know why a field came from where it did."""

    source: str
    asked: int
    answered: int
    seconds: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    offsets: Offsets
    attempts: tuple[Attempt, ...]


def resolve(kernel: Kernel, wanted: Sequence[Field], resolvers: Iterable[Resolver]) -> Resolution:
    """The best answer for each wanted field; the last reason given where none could answer.

    A source that answers `absent` has answered. A `disputed` field stays unknown: no later source decides it.
    """
    best: dict[Field, Offset] = {}
    settled: set[Field] = set()
    attempts = []
    for resolver in resolvers:
        missing = [f for f in wanted if f not in settled]
        if not missing:
            break
        started = time.monotonic()
        answered, reason = 0, None
        try:
            for answer in resolver.resolve(kernel, missing):
                final = answer.state is not State.UNKNOWN or answer.disputed
                if final:
                    settled.add(answer.field)
                    answered += answer.state is not State.UNKNOWN
                best[answer.field] = answer
        except KcompatError as error:
            reason = str(error)
        attempts.append(Attempt(resolver.name, len(missing), answered, time.monotonic() - started, reason))
    why = "; ".join(f"{a.source}: {a.reason}" for a in attempts if a.reason) or "no source knows it"
    offsets = Offsets(best.get(f) or Offset.unknown(f, "none", why) for f in wanted)
    return Resolution(offsets, tuple(attempts))
