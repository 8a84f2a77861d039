"""Several sinks as one, none of which can hold up or bring down another."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from collector.record import Record
from collector.sinks.delivery import Delivery
from collector.sinks.queued import Queued
from collector.sinks.sink import CLOSE_DEADLINE_S, Sink

logger = logging.getLogger(__name__)


class Fanout:
    """Hands every batch to every sink. A sink whose reader left gets no more; BrokenPipeError when none remains.

    A sink among others is put behind a queue. One alone is not: there is nobody it could hold up, and what it
    prints is there when `write` returns.
    """

    name = "all sinks"

    def __init__(self, sinks: Iterable[Sink]) -> None:
        given = list(sinks)
        self.sinks: list[Sink] = [sink if len(given) == 1 or isinstance(sink, Queued | Delivery) else Queued(sink)
                                  for sink in given]
        self._live = list(self.sinks)

    @property
    def written(self) -> int:
        return sum(sink.written for sink in self.sinks)

    @property
    def dropped(self) -> int:
        return sum(sink.dropped for sink in self.sinks)

    def write(self, records: Sequence[Record]) -> None:
        for sink in tuple(self._live):
            try:
                sink.write(records)
            except BrokenPipeError:
                self._live.remove(sink)
                if not self._live:
                    raise
                logger.warning("%s: the reader has left; the other sinks go on", sink.name)

    def flush(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        end = time.monotonic() + deadline_s
        for sink in self._live:
            sink.flush(max(0.0, end - time.monotonic()))

    def report(self, what: str) -> None:
        """To servers that have an ear for it: the collector cannot start."""
        for sink in self.sinks:
            if isinstance(sink, Delivery):
                sink.report(what)

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """One deadline for all: they drain at the same time."""
        end = time.monotonic() + deadline_s
        for sink in self.sinks:
            sink.close(max(0.0, end - time.monotonic()))
