"""TCP segments in any order, with gaps and repeats, made into what each side sent; bounded in every direction."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from collector.protocols.packets import SYN, Segment

MAX_STREAMS = 4096
MAX_BYTES = 1 << 24
# Of one direction: what waits for an earlier segment. More than DNS ever has under way.
MAX_WAITING_BYTES, MAX_WAITING_SEGMENTS = 1 << 17, 64
_HALF = 1 << 31


class Stream:
    """One direction of one connection. `add` gives the bytes that became contiguous, each once and in order."""

    __slots__ = ("_next", "_waiting", "first", "last_s", "waiting_bytes")

    def __init__(self, first: int) -> None:
        self.first = self._next = first
        self._waiting: dict[int, bytes] = {}
        self.waiting_bytes = 0
        self.last_s = 0.0

    def add(self, sequence: int, payload: bytes) -> bytes | None:
        """None where the stream cannot go on: too much waits for a segment that never came, and what follows a gap
        cannot be told from the middle of a message.
        """
        ahead = _ahead(sequence, self._next)
        if ahead > 0:
            return self._wait(sequence, payload)
        fresh = payload[-ahead:]
        if not fresh:
            return b""
        self._next = (self._next + len(fresh)) & 0xFFFF_FFFF
        return fresh + b"".join(self._follow()) if self._waiting else fresh

    def _wait(self, sequence: int, payload: bytes) -> bytes | None:
        before = self._waiting.get(sequence, b"")
        if len(payload) <= len(before):
            return b""
        self._waiting[sequence] = payload
        self.waiting_bytes += len(payload) - len(before)
        if len(self._waiting) > MAX_WAITING_SEGMENTS or self.waiting_bytes > MAX_WAITING_BYTES:
            self._waiting.clear()
            return None
        return b""

    def _follow(self) -> Iterator[bytes]:
        """What waited and now follows, and forgets it; one pass over no more than MAX_WAITING_SEGMENTS, sorted."""
        for sequence in sorted(self._waiting, key=lambda s: _ahead(s, self._next)):
            ahead = _ahead(sequence, self._next)
            if ahead > 0:
                break
            payload = self._waiting.pop(sequence)
            self.waiting_bytes -= len(payload)
            fresh = payload[-ahead:] if -ahead < len(payload) else b""
            self._next = (self._next + len(fresh)) & 0xFFFF_FFFF
            yield fresh


def _ahead(sequence: int, of: int) -> int:
    """How far a sequence number is past another, modulo 2**32: below 0 when it lies before."""
    return (sequence - of + _HALF & 0xFFFF_FFFF) - _HALF


class Messages:
    """Messages behind a 16-bit length, as DNS over TCP has them (RFC 1035 4.2.2), cut out of what a side sent."""

    __slots__ = ("_pieces", "held")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.held = 0

    def add(self, data: bytes) -> list[bytes]:
        """The messages that are complete now. What is held is never more than one message and its length."""
        if not data:
            return []
        self._pieces.append(data)
        self.held += len(data)
        if self.held < 2 or (len(self._pieces) > 1 and self.held < self._needed()):
            return []
        whole, at, found = b"".join(self._pieces), 0, []
        while at + 2 <= len(whole):
            end = at + 2 + int.from_bytes(whole[at:at + 2])
            if end > len(whole):
                break
            found.append(whole[at + 2:end])
            at = end
        self._pieces = [whole[at:]] if at < len(whole) else []
        self.held = len(whole) - at
        return found

    def _needed(self) -> int:
        """Bytes of the first message with its length, so that a message in many pieces is joined once, not each."""
        first = self._pieces[0]
        return 2 + int.from_bytes(first[:2] if len(first) > 1 else first + self._pieces[1][:1])


class _Side(NamedTuple):
    stream: Stream
    messages: Messages

    @property
    def held(self) -> int:
        return self.stream.waiting_bytes + self.messages.held


class Connections:
    """Both directions of many connections: `add` gives the messages a segment completes, with gaps counted.

    A direction is followed from its SYN on; of one older than us, from the first segment that is whole messages. It
    is forgotten when nothing was heard of it for a while, not with its FIN, for packets are seen again and late. Of
    too many, or too much held, the one unheard for longest gives way.
    """

    def __init__(self, max_streams: int = MAX_STREAMS, max_bytes: int = MAX_BYTES) -> None:
        self._max_streams, self._max_bytes = max_streams, max_bytes
        self._sides: OrderedDict[Hashable, _Side] = OrderedDict()
        self.held = 0
        """Bytes held, of all."""
        self.gaps = 0
        """Directions given up, because a segment never came."""

    def __len__(self) -> int:
        return len(self._sides)

    def add(self, scope: Hashable, segment: Segment, now_s: float) -> list[bytes]:
        """`scope` keeps the same addresses of different networks apart, `now_s` is any clock that only grows."""
        key = (scope, segment.source, segment.source_port, segment.destination, segment.destination_port)
        side = self._sides.get(key)
        sequence = segment.sequence
        if segment.flags & SYN:
            sequence = sequence + 1 & 0xFFFF_FFFF
            if side is None or side.stream.first != sequence:
                side = self._open(key, sequence)
        elif side is None:
            if not segment.is_whole or not _is_whole_messages(segment.payload):
                return []
            side = self._open(key, sequence)
        self._sides.move_to_end(key)
        side.stream.last_s = now_s
        before = side.held
        fresh = side.stream.add(sequence, segment.payload) if segment.is_whole else None
        if fresh is None:
            self.gaps += 1
            self._forget(key, before)
            return []
        found = side.messages.add(fresh)
        self.held += side.held - before
        self._shrink()
        return found

    def expire(self, before_s: float) -> None:
        """Forgets the directions unheard since then."""
        while self._sides:
            key, side = next(iter(self._sides.items()))
            if side.stream.last_s >= before_s:
                return
            self._forget(key, side.held)

    def _open(self, key: Hashable, sequence: int) -> _Side:
        if key in self._sides:
            self._forget(key, self._sides[key].held)
        side = self._sides[key] = _Side(Stream(sequence), Messages())
        self._shrink()
        return side

    def _shrink(self) -> None:
        while len(self._sides) > self._max_streams or (self.held > self._max_bytes and len(self._sides) > 1):
            key, side = next(iter(self._sides.items()))
            self._forget(key, side.held)

    def _forget(self, key: Hashable, held: int) -> None:
        del self._sides[key]
        self.held -= held


def _is_whole_messages(payload: bytes) -> bool:
    at = 0
    while at + 14 <= len(payload):
        at += 2 + int.from_bytes(payload[at:at + 2])
    return bool(payload) and at == len(payload)
