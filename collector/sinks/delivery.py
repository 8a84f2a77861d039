"""A sink that sends to a server: what waits is spooled, what is not taken is tried again, nobody else waits for it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collector.record import Record
from collector.sinks.chunk import Chunk, Refused, Retry, Transport
from collector.sinks.sink import CLOSE_DEADLINE_S
from collector.sinks.spool import Spool
from collector.sinks.trouble import Trouble

logger = logging.getLogger(__name__)

_INTAKE_BYTES = 32 << 20
# Records of one go: whole requests of every kind of server.
_AT_ONCE = 4096
_GRACE_S = 0.5
_TOLD_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries: doubling up to the longest. Jitter, so that a fleet does not come back in one wave."""

    first_s: float = 0.5
    longest_s: float = 30.0

    def pause_s(self, failures: int) -> float:
        longest = min(self.first_s * 2 ** min(failures - 1, 30), self.longest_s)
        return random.uniform(longest / 2, longest)


class Delivery:
    """`write` encodes and packs. One thread spools, another sends, oldest first, until it is taken.

    Counters only grow: `written` points a server took, `dropped` were refused or did not fit the spool.
    """

    def __init__(self, transport: Transport, spool: Spool, backoff: Backoff = Backoff(), place: str = "") -> None:
        self.name = transport.name
        self.place = place
        """What tells it from others of that name: its spool's."""
        self.written = 0
        self.given_bytes = 0
        """Of all it was to send, packed."""
        self._transport, self._spool, self._backoff = transport, spool, backoff
        self._refused = self._unfit = self._late = 0
        self._trouble = Trouble()
        self._told_lost, self._told_at = 0, -_TOLD_EVERY_S
        # What nobody keeps yet; in the numbers also the chunk that is just being kept.
        self._intake: deque[Chunk] = deque()
        self._intake_bytes = self._intake_points = 0
        self._closing = self._closed = False
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [self._begun("spool", self._keep), self._begun("send", self._deliver)]

    @property
    def dropped(self) -> int:
        return self._refused + self._unfit + self._late + self._spool.lost

    @property
    def waiting(self) -> int:
        """Points not yet taken by the server, on disk or in memory."""
        return self._intake_points + self._spool.points

    @property
    def lag_s(self) -> float:
        """For how long the oldest has been waiting; 0 when nothing does."""
        oldest = self._spool.oldest_ns
        return max(0.0, (time.time_ns() - oldest) / 1e9) if oldest is not None else 0.0

    def write(self, records: Sequence[Record]) -> None:
        # A few at a time, and packed at once: as text they are thirty times as large.
        for begin in range(0, len(records), _AT_ONCE):
            some = records[begin:begin + _AT_ONCE]
            try:
                chunks = list(self._transport.encode(some))
            except ValueError:
                chunks = self._encodable(some)
            self._take(list(map(self._transport.pack, chunks)))

    def _take(self, chunks: Sequence[Chunk]) -> None:
        with self._changed:
            if self._closing:
                self._late += sum(chunk.points for chunk in chunks)
                return
            for chunk in chunks:
                self._intake.append(chunk)
                self._intake_bytes += len(chunk.payload)
                self._intake_points += chunk.points
                self.given_bytes += len(chunk.payload)
            while self._intake_bytes > _INTAKE_BYTES and len(self._intake) > 1:
                self._late += self._left_intake(self._intake.popleft()).points
            self._changed.notify_all()

    def report(self, what: str) -> None:
        """For the server to show: the collector cannot start."""
        self._transport.report(what)

    def renew(self) -> None:
        """Secrets may be others now."""
        self._transport.renew()

    def flush(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Wait until the server has everything, or the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: not self._intake_points and not self._spool.points, deadline_s)

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Deliver what waits. What a server that is in trouble does not take stays on disk for the next start."""
        if self._closed:
            return
        end = time.monotonic() + deadline_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        keeping, sending = self._threads
        keeping.join(max(0.0, end - time.monotonic()))
        with self._changed:
            self._changed.wait_for(lambda: not self._spool.points or (self._trouble.now and self._spool.durable),
                                   max(0.0, end - time.monotonic()))
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in (keeping, sending):
            thread.join(_GRACE_S)
        with self._changed:
            while self._intake:
                self._late += self._left_intake(self._intake.popleft()).points
            self._closed = True
        left = self._spool.close()
        if left:
            logger.info("%s: %d points wait on disk for the next start", self.name, left)
        if self.dropped:
            logger.warning("%s: %d points delivered, %d dropped", self.name, self.written, self.dropped)

    def _begun(self, what: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"{what} {self.name}", daemon=True)
        thread.start()
        return thread

    def _encodable(self, records: Sequence[Record]) -> list[Chunk]:
        """One by one, without those that have no spelling."""
        good: list[Record] = []
        for record in records:
            try:
                list(self._transport.encode([record]))
            except ValueError as error:
                self._unfit += 1
                logger.warning("%s: dropped: %s", self.name, error)
            else:
                good.append(record)
        return list(self._transport.encode(good)) if good else []

    def _left_intake(self, chunk: Chunk) -> Chunk:
        self._intake_bytes -= len(chunk.payload)
        self._intake_points -= chunk.points
        return chunk

    def _keep(self) -> None:
        """The thread that spools. No fault ends it: from then on all would be lost."""
        while (chunk := self._next_of_intake()) is not None:
            try:
                self._keep_one(chunk)
            except Exception as error:
                self._surprised(error)
                self._stop.wait(self._backoff.first_s)

    def _next_of_intake(self) -> Chunk | None:
        """None: there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._intake or self._closing)
            return self._intake.popleft() if self._intake else None

    def _keep_one(self, chunk: Chunk) -> None:
        try:
            self._spool.append(chunk)
        finally:
            # Whatever went wrong, the spool has it, in memory at least.
            with self._changed:
                self._left_intake(chunk)
                last = not self._intake
                self._changed.notify_all()
        self._spool.sync(last=last)
        self._tell_lost()

    def _deliver(self) -> None:
        """The thread that sends. No fault ends it: nothing would be sent any more."""
        failures = 0
        while not self._stop.is_set():
            asked_s = 0.0
            try:
                if (chunk := self._spool.head()) is not None:
                    self._send(chunk)
                else:
                    self._await_points()
            except Retry as error:
                self._tell(str(error), "will be tried again")
                asked_s = min(error.after_s, self._backoff.longest_s)
            except Exception as error:
                # A bug, or a library's own surprise: must not lose the points either.
                self._surprised(error)
            else:
                failures = 0
                continue
            failures += 1
            self._stop.wait(max(self._backoff.pause_s(failures), asked_s))
        self._transport.close()

    def _await_points(self) -> None:
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stop.is_set() or self._spool.points)

    def _send(self, chunk: Chunk) -> None:
        try:
            self._transport.send(chunk)
        except Refused as error:
            self._tell(str(error), "the points are dropped")
            refused = chunk.points if error.points is None else error.points
            self._refused += refused
            self.written += chunk.points - refused
        else:
            self._tell("", "")
            self.written += chunk.points
        self._spool.done(chunk)
        with self._changed:
            self._changed.notify_all()

    def _surprised(self, error: Exception) -> None:
        logger.debug("%s", self.name, exc_info=True)
        self._tell(f"{type(error).__name__}: {error}", "will be tried again")

    def _tell(self, trouble: str, consequence: str) -> None:
        """One line when the trouble starts or changes and one when it ends, not one a request."""
        with self._changed:
            news = self._trouble.begins(trouble) if trouble else self._trouble.ends()
            self._changed.notify_all()
        if news and trouble:
            logger.warning("%s: %s (%s)", self.name, trouble, consequence)
        elif news:
            logger.info("%s: accepts points again", self.name)

    def _tell_lost(self) -> None:
        lost = self._spool.lost
        if lost > self._told_lost and time.monotonic() - self._told_at >= _TOLD_EVERY_S:
            logger.warning("%s: the spool is full: %d points lost so far, the oldest", self.name, lost)
            self._told_lost, self._told_at = lost, time.monotonic()
