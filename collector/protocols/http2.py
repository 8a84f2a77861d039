"""HTTP/2 as it goes by: requests paired with their responses, stream by stream, out of what each side sent.

Headers are unpacked by hpack, which is what h2 is built on. Not h2 itself: that is one of the two ends, keeps their
windows and ends at the first byte that is missing. Here a connection may have begun long ago and bytes may be missing
where a capture was cut. Then the table of earlier headers is not known; as its entries are numbered from the newest,
one that was seen is still the right one, and one that was not is told to be unknown: never another path.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from collector.protocols.exchange import LONGEST_LINE, METHODS, PRINTABLE, Exchange, path_of
from collector.protocols.http2_frames import (
    BLOCKS,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    PADDED,
    PRIORITIZED,
    PUSH_PROMISE,
    REQUESTS,
    RST_STREAM,
    Frame,
)
from collector.protocols.http2_side import LONGEST_BLOCK, UNKNOWN, Headers, Side, State

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Those at a time that have no end yet; of more, the oldest is forgotten.
MAX_STREAMS = 256

_STATUS = re.compile(rb"[1-5]\d\d\Z")
_GRPC_STATUS = re.compile(rb"\d{1,3}\Z")
_GRPC = b"application/grpc"


class _Stream:
    __slots__ = ("answered", "host", "last_ns", "method", "path", "truncated")

    def __init__(self, last_ns: int) -> None:
        self.last_ns = last_ns
        self.method = self.path = self.host = ""
        self.truncated = False
        self.answered: Exchange | None = None
        """What waits for the status that gRPC tells at the end."""


class Connection:
    """Feed it what either side sent, in order, with the time; it gives the exchanges whose final status is there, of
    gRPC those whose streams have ended.

    Nothing in it grows with what it is fed. Raises nothing, whatever that is.
    """

    def __init__(self, is_begun: bool = False) -> None:
        """`is_begun`: what is fed first lies somewhere in the middle."""
        self._client, self._server = Side(), Side()
        for side in (self._client, self._server) if is_begun else ():
            side.lose()
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._newest = 0
        self.untold = 0
        """Responses whose method, path or status could not be told, or whose requests were forgotten."""

    @property
    def waiting(self) -> int:
        """Requests that have no response yet, and calls of gRPC that have not ended."""
        return sum(bool(stream.path) for stream in self._streams.values())

    def request(self, data: bytes, time_ns: int, missing: int = 0) -> list[Exchange]:
        """What the client sent; `missing` bytes after it were not captured. A reset may end a gRPC exchange."""
        return self._feed(self._client, data, time_ns, missing)

    def response(self, data: bytes, time_ns: int, missing: int = 0) -> list[Exchange]:
        """What the server sent."""
        return self._feed(self._server, data, time_ns, missing)

    def _feed(self, side: Side, data: bytes, time_ns: int, missing: int) -> list[Exchange]:
        found: list[Exchange] = []
        side.now_ns = time_ns
        at = self._begin(side, data)
        while at < len(data) and side.state is not State.LOST:
            if side.state in (State.START, State.HEAD):
                if not side.held:
                    side.frame_ns = time_ns
                taken = data[at:at + HEAD.size - len(side.held)]
                side.held += taken
                at += len(taken)
                if len(side.held) == HEAD.size:
                    self._head(side, Frame.of(bytes(side.held)), found)
            else:
                taken = data[at:at + side.left]
                if side.state is State.BLOCK:
                    side.held += taken
                at += len(taken)
                side.left -= len(taken)
            self._asked_more(side)
            if side.state in (State.BLOCK, State.SKIP) and not side.left:
                self._end(side, found)
        if missing:
            self._skip(side, missing, found)
        return found

    def _begin(self, side: Side, data: bytes) -> int:
        """Where in the data frames begin, or go on."""
        if side.state is State.START and side is self._client:
            begun = bytes(side.held) + data[:len(PREFACE) - len(side.held)]
            if PREFACE.startswith(begun):
                at = len(begun) - len(side.held)
                side.held[:] = begun
                if len(begun) == len(PREFACE):
                    side.held.clear()
                    side.state = State.HEAD
                return at
            side.lose()
        if side.state is State.LOST and len(data) >= HEAD.size and Frame.of(data[:HEAD.size]).is_sure:
            side.state = State.HEAD
        return 0

    def _head(self, side: Side, frame: Frame, found: list[Exchange]) -> None:
        """A frame begins."""
        side.held.clear()
        goes_on = frame.type == CONTINUATION and frame.stream == side.first.stream
        # Nothing comes between headers and their continuation. One whose beginning was not seen is only passed over.
        if not (frame.is_sure if side.state is State.START else frame.is_sound) or (side.first.stream and not goes_on):
            side.lose()
            return
        side.frame, side.left = frame, frame.size
        side.state = State.BLOCK if frame.type in BLOCKS and frame.size <= LONGEST_BLOCK else State.SKIP
        if frame.type in (HEADERS, PUSH_PROMISE):
            side.first, side.first_ns, side.block = frame, side.frame_ns, bytearray()
        if frame.type in BLOCKS and side.state is State.SKIP:
            side.block = None

    def _asked_more(self, side: Side) -> None:
        """Of a request in its frame, if it is in one: more came."""
        if side is self._client and side.state in (State.BLOCK, State.SKIP) and side.frame.type in REQUESTS:
            stream = self._streams.get(side.frame.stream)
            if stream and not stream.answered:
                stream.last_ns = side.now_ns

    def _end(self, side: Side, found: list[Exchange]) -> None:
        """A frame has ended."""
        frame, side.state = side.frame, State.HEAD
        if frame.type in BLOCKS:
            self._part(side, frame)
            side.held.clear()
            if frame.flags & END_HEADERS:
                first, side.first = side.first, Frame(0, 0, 0, 0)
                headers = side.unpack()
                if headers is not None and first.type == HEADERS:
                    self._told(side, first, headers, found)
                elif first.type == HEADERS:
                    self._could_not_tell(side, first)
                if first.type == HEADERS and first.flags & END_STREAM:
                    self._over(side, first.stream, found)
        elif frame.type == RST_STREAM or (frame.type == DATA and frame.flags & END_STREAM):
            self._over(side, frame.stream, found, is_reset=frame.type == RST_STREAM)

    def _part(self, side: Side, frame: Frame) -> None:
        """Of the headers, what this frame has of them: without padding, priority and the promised stream."""
        begin, end = 0, len(side.held)
        if frame.type != CONTINUATION:
            if frame.flags & PADDED and end:
                begin, end = 1, end - side.held[0]
            if frame.type == PUSH_PROMISE:
                begin += 4
            elif frame.flags & PRIORITIZED:
                begin += 5
        if side.block is None or begin > end or len(side.block) + end - begin > LONGEST_BLOCK:
            side.block = None
        else:
            side.block += side.held[begin:end]

    def _skip(self, side: Side, missing: int, found: list[Exchange]) -> None:
        if side.state not in (State.BLOCK, State.SKIP) or missing > side.left:
            side.lose()
            return
        self._asked_more(side)
        if side.state is State.BLOCK:
            side.block, side.state = None, State.SKIP
            side.held.clear()
        side.left -= missing
        if not side.left:
            self._end(side, found)

    def _told(self, side: Side, first: Frame, headers: Headers, found: list[Exchange]) -> None:
        """Headers, or what comes after a body: only the first of a request, and of a response, say what they are."""
        stream = self._streams.get(first.stream)
        if side is self._client:
            if stream is None:
                self._ask(side, first.stream, headers)
        elif stream is None:
            # What the server began itself, 1xx and trailers are no answers.
            self.untold += first.stream & 1 and headers.get(b":status", b"1")[:1] != b"1"
        elif stream.answered is None:
            self._answer(first.stream, stream, headers, side.first_ns, found)
        else:
            stream.answered = stream.answered._replace(grpc_status=_grpc_status(headers))

    def _could_not_tell(self, side: Side, first: Frame) -> None:
        """Headers that were lost: a request's leave a stream of which nothing is known, a response's end it."""
        if side is self._client and first.stream not in self._streams:
            self._ask(side, first.stream, {})
        elif side is self._server and (stream := self._streams.get(first.stream)) and not stream.answered:
            # It may have been a 1xx: what comes next could be taken for the response, or be its end.
            del self._streams[first.stream]
            self.untold += 1

    def _ask(self, side: Side, number: int, headers: Headers) -> None:
        # Of one that is over these are trailers; an even one is the server's to begin.
        if number <= self._newest or not number & 1:
            return
        self._newest = number
        made = self._streams[number] = _Stream(side.now_ns)
        method, target = headers.get(b":method", UNKNOWN), headers.get(b":path", UNKNOWN)
        authority = headers.get(b":authority") or headers.get(b"host") or b""
        # Without a path it is an authority that is asked for.
        is_authority = method == b"CONNECT" and b":path" not in headers
        target = authority if is_authority else target
        if method in METHODS and target != UNKNOWN:
            made.method = method.decode()
            made.path, ended = path_of(target[:LONGEST_LINE], is_authority)
            made.truncated = len(target) > LONGEST_LINE and not ended
        if PRINTABLE.match(authority):
            made.host = authority.decode()
        if len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)

    def _answer(self, number: int, stream: _Stream, headers: Headers, first_ns: int, found: list[Exchange]) -> None:
        status = headers.get(b":status", UNKNOWN)
        if not _STATUS.match(status) or not stream.path:
            del self._streams[number]
            self.untold += 1
            return
        if status[:1] == b"1":
            return
        exchange = Exchange(stream.method, stream.path, stream.truncated, int(status), "2",
                            max(0, first_ns - stream.last_ns), stream.host, _grpc_status(headers))
        if headers.get(b"content-type", b"").startswith(_GRPC):
            stream.answered = exchange
        else:
            del self._streams[number]
            found.append(exchange)

    def _over(self, side: Side, number: int, found: list[Exchange], is_reset: bool = False) -> None:
        """One side has said all; the stream is over when the server has, or when either wants no more of it."""
        if (side is self._server or is_reset) and (stream := self._streams.pop(number, None)) and stream.answered:
            found.append(stream.answered)


def _grpc_status(headers: Headers) -> int | None:
    status = headers.get(b"grpc-status", b"")
    return int(status) if _GRPC_STATUS.match(status) else None
