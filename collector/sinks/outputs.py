"""All outputs of a collector as one sink, which may be others after the configuration was read again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from collector.record import Record
from collector.sinks import Spec, open_sink, open_sinks, settle_spools
from collector.sinks.delivery import Delivery
from collector.sinks.fanout import Fanout
from collector.sinks.queued import Queued
from collector.sinks.sink import CLOSE_DEADLINE_S, Sink
from collector.status import SinkStatus


class Outputs:
    """A sink. Those that were replaced still count in `written` and `dropped`."""

    name = "outputs"

    def __init__(self, specs: Sequence[Spec]) -> None:
        """Raises KcompatError when one of them cannot be opened."""
        self._specs = list(specs)
        self._now = open_sinks(specs)
        self._written_before = self._dropped_before = self._bytes_before = 0

    @property
    def written(self) -> int:
        return self._written_before + self._now.written

    @property
    def dropped(self) -> int:
        return self._dropped_before + self._now.dropped

    @property
    def given_bytes(self) -> int:
        """Of those that send, packed."""
        return self._bytes_before + sum(one.given_bytes for one in self._now.sinks if isinstance(one, Delivery))

    def write(self, records: Sequence[Record]) -> None:
        self._now.write(records)

    def flush(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        self._now.flush(deadline_s)

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        self._now.close(deadline_s)

    def report(self, what: str) -> None:
        """To servers that have an ear for it: the collector cannot start."""
        self._now.report(what)

    def reopen(self, specs: Sequence[Spec]) -> None:
        """Others from now on; the rest deliver what they hold. Unchanged ones go on, with secrets that are read again.

        KcompatError: all stay.
        """
        running = list(zip(self._specs, self._now.sinks, strict=True))
        settle_spools(specs)
        sinks: list[Sink] = []
        opened: list[Sink] = []
        try:
            for spec in specs:
                same = next((one for one in running if one[0] == spec), None)
                if same:
                    running.remove(same)
                    sinks.append(same[1])
                else:
                    opened.append(open_sink(spec))
                    sinks.append(opened[-1])
            self._specs, self._now = list(specs), Fanout(sinks)
        except BaseException:
            for sink in opened:
                sink.close(0)
            raise
        for sink in sinks:
            if isinstance(sink, Delivery):
                sink.renew()
        end = time.monotonic() + CLOSE_DEADLINE_S
        for _, sink in running:
            sink.close(max(0.0, end - time.monotonic()))
            self._written_before += sink.written
            self._dropped_before += sink.dropped
            self._bytes_before += sink.given_bytes if isinstance(sink, Delivery) else 0

    def statuses(self) -> tuple[SinkStatus, ...]:
        return tuple(map(_status, self._now.sinks, _unique(self._now.sinks)))


def _unique(sinks: Sequence[Sink]) -> list[str]:
    """Their names, each once: of several alike each has its spool's too, the same in whatever order they are."""
    alike = Counter(sink.name for sink in sinks)
    names = [f"{sink.name} ({sink.place})" if isinstance(sink, Delivery) and alike[sink.name] > 1 else sink.name
             for sink in sinks]
    seen: Counter[str] = Counter()
    for at, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[at] = f"{name} #{seen[name]}"
    return names


def _status(sink: Sink, name: str) -> SinkStatus:
    waiting = sink.waiting if isinstance(sink, Queued | Delivery) else 0
    return SinkStatus(name, sink.written, sink.dropped, waiting, sink.lag_s if isinstance(sink, Delivery) else 0.0)
