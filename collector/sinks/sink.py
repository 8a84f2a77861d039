"""What a sink is: somewhere records go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from collector.record import Record

CLOSE_DEADLINE_S = 5.0


class Sink(Protocol):
    """`written + dropped` is every record it was given, less those it still holds; both only grow."""

    @property
    def name(self) -> str:
        """As the user spelled it, without secrets."""

    @property
    def written(self) -> int: ...

    @property
    def dropped(self) -> int: ...

    def write(self, records: Sequence[Record]) -> None:
        """Take one batch. BrokenPipeError: the reader has left, and nothing written from now on will be read."""

    def flush(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Return when nothing is held any more, or the deadline has passed."""

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Flush, then let go of everything; what is still held at the deadline is dropped."""
