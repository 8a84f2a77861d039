"""All outputs of a collector as one sink, which may be others after the configuration was read again."""

from __future__ import annotations

from collections.abc import Sequence

from collector.record import Record
from collector.sinks import open_sinks
from collector.sinks.queued import Queued
from collector.sinks.sink import CLOSE_DEADLINE_S, Sink
from collector.status import SinkStatus


class Outputs:
    """A sink. Those that were replaced still count in `written` and `dropped`."""

    name = "outputs"

    def __init__(self, specs: Sequence[str]) -> None:
        """Raises KcompatError when one of them cannot be opened."""
        self._now = open_sinks(specs)
        self._written_before = self._dropped_before = 0

    @property
    def written(self) -> int:
        return self._written_before + self._now.written

    @property
    def dropped(self) -> int:
        return self._dropped_before + self._now.dropped

    def write(self, records: Sequence[Record]) -> None:
        self._now.write(records)

    def flush(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        self._now.flush(deadline_s)

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        self._now.close(deadline_s)

    def reopen(self, specs: Sequence[str]) -> None:
        """Others from now on; what the old ones hold they still deliver. KcompatError: they stay."""
        before, self._now = self._now, open_sinks(specs)
        before.close()
        self._written_before += before.written
        self._dropped_before += before.dropped

    def statuses(self) -> tuple[SinkStatus, ...]:
        return tuple(_status(sink) for sink in self._now.sinks)


def _status(sink: Sink) -> SinkStatus:
    return SinkStatus(sink.name, sink.written, sink.dropped, sink.waiting if isinstance(sink, Queued) else 0)
