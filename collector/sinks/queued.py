"""A sink behind a bounded queue and a thread, so that a slow one holds up nobody."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from collector.record import Record
from collector.sinks.sink import CLOSE_DEADLINE_S, Sink

logger = logging.getLogger(__name__)

# Two full netflow intervals at the default cap on flows.
CAPACITY = 1 << 17
_GRACE_S = 0.5


class Queued:
    """At most `capacity` records wait, besides the batch being written; the oldest batch gives way to a new one.

    `give_up` is set when the deadline of `close` has passed: the inner sink should then stop waiting and retrying.
    """

    def __init__(self, sink: Sink, give_up: threading.Event | None = None, capacity: int = CAPACITY) -> None:
        self.name = sink.name
        self._sink = sink
        self._give_up = give_up or threading.Event()
        self._capacity = capacity
        self._batches: deque[Sequence[Record]] = deque()
        self._offered = self._waiting = self._lost = 0
        self._busy = self._closing = self._closed = self._reader_left = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"sink {self.name}", daemon=True)
        self._thread.start()

    @property
    def written(self) -> int:
        return self._sink.written

    @property
    def dropped(self) -> int:
        if self._closed:
            return self._offered - self._sink.written
        return self._lost + self._sink.dropped

    @property
    def waiting(self) -> int:
        return self._waiting

    def write(self, records: Sequence[Record]) -> None:
        with self._changed:
            self._offered += len(records)
            if self._reader_left:
                self._lost += len(records)
                raise BrokenPipeError(f"{self.name}: the reader has left")
            # A copy of a list, but not of records that are yet to be made.
            kept = records[-self._capacity:]
            self._lost += len(records) - len(kept)
            while self._waiting + len(kept) > self._capacity:
                self._lose(self._batches.popleft())
            if kept and not self._closing:
                self._batches.append(kept)
                self._waiting += len(kept)
                self._changed.notify_all()

    def flush(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._batches and not self._busy, deadline_s)

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Wait for the queue to drain, then drop what is left. A thread stuck in a system call is left behind."""
        if self._closed:
            return
        give_up_at = time.monotonic() + deadline_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, give_up_at - time.monotonic()))
        self._give_up.set()
        self._thread.join(_GRACE_S)
        self._closed = True
        if self.dropped:
            logger.warning("%s: %d records written, %d dropped", self.name, self.written, self.dropped)

    def _lose(self, batch: Sequence[Record]) -> None:
        self._waiting -= len(batch)
        self._lost += len(batch)

    def _next(self) -> Sequence[Record] | None:
        """The oldest batch; None when there will be no more."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._batches or self._closing)
            if not self._batches or self._give_up.is_set():
                return None
            batch = self._batches.popleft()
            self._waiting -= len(batch)
            self._busy = True
            return batch

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            before = self._sink.written + self._sink.dropped
            try:
                self._sink.write(batch)
            except BrokenPipeError:
                self._reader_left = True
            except Exception:
                # Whatever is wrong with one sink must not end the others: the batch is lost, and said to be.
                logger.exception("%s: a batch of %d records is dropped", self.name, len(batch))
            with self._changed:
                self._lost += len(batch) - (self._sink.written + self._sink.dropped - before)
                while self._reader_left and self._batches:
                    self._lose(self._batches.popleft())
        self._sink.close(0)
