"""HTTP/2 as it goes by: requests paired with their responses, stream by stream, out of what each side sent.

Headers are unpacked by hpack, which is what h2 is built on. Not h2 itself: that is one of the two ends, keeps their
windows and ends at the first byte that is missing. Here a connection may have begun long ago and bytes may be missing
where a capture was cut. Then the table of earlier headers is not known; as its entries are numbered from the newest,
one that was seen is still the right one, and one that was not is told to be unknown: never another path.
"""

from __future__ import annotations

import re
import struct
from collections import OrderedDict
from enum import Enum, auto
from typing import NamedTuple

from hpack import Decoder, HPACKError
from hpack.table import HeaderTable

from collector.protocols.http1 import LONGEST_LINE, METHODS, Exchange, path_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Of one message's headers, packed; what is longer is not looked into.
LONGEST_BLOCK = 1 << 16
LARGEST_TABLE = 1 << 16
# Those at a time that have no end yet; of more, the oldest is forgotten.
MAX_STREAMS = 256
# Pieces that make no sense in a row, before a connection is given up for good.
_STRIKES = 64

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_BLOCKS = frozenset((_HEADERS, _PUSH_PROMISE, _CONTINUATION))
_REQUESTS = frozenset((_DATA, _HEADERS, _CONTINUATION))
_OF_CONNECTION = frozenset((_SETTINGS, _PING, _GOAWAY))
_SIZES = {_PRIORITY: 5, _RST_STREAM: 4, _PING: 8, _WINDOW: 4}
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITIZED = 0x01, 0x04, 0x08, 0x20
# The flags each type of frame has (RFC 9113 6).
_FLAGS = {_DATA: 0x09, _HEADERS: 0x2D, _SETTINGS: 0x01, _PUSH_PROMISE: 0x0C, _PING: 0x01, _CONTINUATION: 0x04}
_HEAD = struct.Struct("!BHBBI")
_UNKNOWN = b"\0unknown"
_STATUS = re.compile(rb"[1-5]\d\d\Z")
_GRPC_STATUS = re.compile(rb"\d{1,3}\Z")
_PRINTABLE = re.compile(rb"[!-~]*\Z")
_GRPC = b"application/grpc"

_Headers = dict[bytes, bytes]


class _Frame(NamedTuple):
    size: int
    type: int
    flags: int
    stream: int

    @classmethod
    def of(cls, head: bytes) -> _Frame:
        high, low, what, flags, stream = _HEAD.unpack(head)
        return cls(high << 16 | low, what, flags, stream & 0x7FFF_FFFF)

    @property
    def is_sound(self) -> bool:
        """Whether frames of this type look like that; of a type that is not known, it may."""
        if self.type > _CONTINUATION:
            return True
        if self.type != _WINDOW and (self.stream == 0) != (self.type in _OF_CONNECTION):
            return False
        if self.type == _SETTINGS and self.size % 6:
            return False
        return self.size == _SIZES.get(self.type, self.size)

    @property
    def is_sure(self) -> bool:
        """Whether nothing else is likely to look like that: bytes from the middle of something are not taken for it."""
        return (self.type <= _CONTINUATION and self.is_sound and self.size < 1 << 16
                and not self.flags & ~_FLAGS.get(self.type, 0) and self.type not in (_DATA, _CONTINUATION))


class _Table(HeaderTable):
    """Entries that came before what was seen are unknown, not wrong."""

    def get_by_index(self, index: int) -> tuple[bytes, bytes]:
        if index > self.STATIC_TABLE_LENGTH + len(self.dynamic_entries):
            return _UNKNOWN, _UNKNOWN
        return super().get_by_index(index)


class _Stream:
    __slots__ = ("answered", "host", "last_ns", "method", "path", "truncated")

    def __init__(self, last_ns: int) -> None:
        self.last_ns = last_ns
        self.method = self.path = self.host = ""
        self.truncated = False
        self.answered: Exchange | None = None
        """What waits for the status that gRPC tells at the end."""


class _State(Enum):
    START = auto()
    HEAD = auto()
    BLOCK = auto()
    """In a frame whose bytes are headers."""
    SKIP = auto()
    """In any other."""
    LOST = auto()
    """It is not known where a frame begins: until a piece begins like one."""


class _Side:
    """Where one direction is in its frames. Holds no more than one message's headers."""

    __slots__ = ("block", "decoder", "first", "first_ns", "frame", "frame_ns", "held", "left", "now_ns", "state",
                 "strikes")

    def __init__(self) -> None:
        self.state = _State.START
        self.held = bytearray()
        self.left = self.now_ns = self.frame_ns = self.first_ns = self.strikes = 0
        self.frame = self.first = _Frame(0, 0, 0, 0)
        """The frame it is in; the one that began the headers that have not ended."""
        self.block: bytearray | None = None
        """Those headers, packed; None when there are none, or something of them is missing."""
        self.forget()

    def forget(self) -> None:
        """What the table holds is not known any more."""
        self.decoder = Decoder(LONGEST_BLOCK)
        self.decoder.header_table = _Table()
        self.decoder.max_allowed_table_size = LARGEST_TABLE

    def lose(self) -> None:
        self.state = _State.LOST
        self.held.clear()
        self.block = None
        self.first = _Frame(0, 0, 0, 0)
        self.forget()

    def unpack(self) -> _Headers | None:
        """The headers that have ended, or None: they make no sense, or something of them is missing.

        A name that comes twice, and must not, has no value that could be told.
        """
        block, self.block = self.block, None
        if block is None:
            self.forget()
            return None
        try:
            found = self.decoder.decode(bytes(block), raw=True)
        except HPACKError:
            self.forget()
            return None
        headers: _Headers = {}
        for name, value in found:
            twice = name in headers and name != b"cookie"
            headers[bytes(name)] = _UNKNOWN if twice else bytes(value)
        return headers


class Connection:
    """Feed it what either side sent, in order, with the time; it gives the exchanges whose final status is there, of
    gRPC those whose streams have ended.

    Nothing in it grows with what it is fed. Raises nothing, whatever that is.
    """

    def __init__(self) -> None:
        self._client, self._server = _Side(), _Side()
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._newest = 0
        self.untold = 0
        """Responses whose method, path or status could not be told, or whose requests were forgotten."""

    @property
    def is_over(self) -> bool:
        """Whether it is no HTTP/2: nothing more will come of it."""
        return max(self._client.strikes, self._server.strikes) >= _STRIKES

    def request(self, data: bytes, time_ns: int, missing: int = 0) -> list[Exchange]:
        """What the client sent; `missing` bytes after it were not captured. A reset may end a gRPC exchange."""
        return self._feed(self._client, data, time_ns, missing)

    def response(self, data: bytes, time_ns: int, missing: int = 0) -> list[Exchange]:
        """What the server sent."""
        return self._feed(self._server, data, time_ns, missing)

    def _feed(self, side: _Side, data: bytes, time_ns: int, missing: int) -> list[Exchange]:
        found: list[Exchange] = []
        if self.is_over:
            return found
        side.now_ns = time_ns
        at = self._begin(side, data)
        while at < len(data) and side.state is not _State.LOST:
            if side.state in (_State.START, _State.HEAD):
                if not side.held:
                    side.frame_ns = time_ns
                taken = data[at:at + _HEAD.size - len(side.held)]
                side.held += taken
                at += len(taken)
                if len(side.held) == _HEAD.size:
                    self._head(side, _Frame.of(bytes(side.held)), found)
            else:
                taken = data[at:at + side.left]
                if side.state is _State.BLOCK:
                    side.held += taken
                at += len(taken)
                side.left -= len(taken)
            self._asked_more(side)
            if side.state in (_State.BLOCK, _State.SKIP) and not side.left:
                self._end(side, found)
        if missing:
            self._skip(side, missing, found)
        return found

    def _begin(self, side: _Side, data: bytes) -> int:
        """Where in the data frames begin, or go on."""
        if side.state is _State.START and side is self._client:
            begun = bytes(side.held) + data[:len(PREFACE) - len(side.held)]
            if PREFACE.startswith(begun):
                at = len(begun) - len(side.held)
                side.held[:] = begun
                if len(begun) == len(PREFACE):
                    side.held.clear()
                    side.state = _State.HEAD
                return at
            side.lose()
        if side.state is _State.LOST and data:
            if len(data) >= _HEAD.size and _Frame.of(data[:_HEAD.size]).is_sure:
                side.state, side.strikes = _State.HEAD, 0
            else:
                side.strikes += 1
        return 0

    def _head(self, side: _Side, frame: _Frame, found: list[Exchange]) -> None:
        """A frame begins."""
        side.held.clear()
        goes_on = frame.type == _CONTINUATION and frame.stream == side.first.stream
        # Nothing comes between headers and their continuation. One whose beginning was not seen is only passed over.
        if not (frame.is_sure if side.state is _State.START else frame.is_sound) or (side.first.stream and not goes_on):
            side.lose()
            return
        side.frame, side.left = frame, frame.size
        side.state = _State.BLOCK if frame.type in _BLOCKS and frame.size <= LONGEST_BLOCK else _State.SKIP
        if frame.type in (_HEADERS, _PUSH_PROMISE):
            side.first, side.first_ns, side.block = frame, side.frame_ns, bytearray()
        if frame.type in _BLOCKS and side.state is _State.SKIP:
            side.block = None

    def _asked_more(self, side: _Side) -> None:
        """Of a request in its frame, if it is in one: more came."""
        if side is self._client and side.state in (_State.BLOCK, _State.SKIP) and side.frame.type in _REQUESTS:
            stream = self._streams.get(side.frame.stream)
            if stream and not stream.answered:
                stream.last_ns = side.now_ns

    def _end(self, side: _Side, found: list[Exchange]) -> None:
        """A frame has ended."""
        frame, side.state = side.frame, _State.HEAD
        if frame.type in _BLOCKS:
            self._part(side, frame)
            side.held.clear()
            if frame.flags & _END_HEADERS:
                first, side.first = side.first, _Frame(0, 0, 0, 0)
                headers = side.unpack()
                if headers is not None and first.type == _HEADERS:
                    self._told(side, first, headers, found)
                elif first.type == _HEADERS:
                    self._could_not_tell(side, first)
                if first.type == _HEADERS and first.flags & _END_STREAM:
                    self._over(side, first.stream, found)
        elif frame.type == _RST_STREAM or (frame.type == _DATA and frame.flags & _END_STREAM):
            self._over(side, frame.stream, found, is_reset=frame.type == _RST_STREAM)

    def _part(self, side: _Side, frame: _Frame) -> None:
        """Of the headers, what this frame has of them: without padding, priority and the promised stream."""
        begin, end = 0, len(side.held)
        if frame.type != _CONTINUATION:
            if frame.flags & _PADDED and end:
                begin, end = 1, end - side.held[0]
            if frame.type == _PUSH_PROMISE:
                begin += 4
            elif frame.flags & _PRIORITIZED:
                begin += 5
        if side.block is None or begin > end or len(side.block) + end - begin > LONGEST_BLOCK:
            side.block = None
        else:
            side.block += side.held[begin:end]

    def _skip(self, side: _Side, missing: int, found: list[Exchange]) -> None:
        if side.state not in (_State.BLOCK, _State.SKIP) or missing > side.left:
            side.lose()
            return
        self._asked_more(side)
        if side.state is _State.BLOCK:
            side.block, side.state = None, _State.SKIP
            side.held.clear()
        side.left -= missing
        if not side.left:
            self._end(side, found)

    def _told(self, side: _Side, first: _Frame, headers: _Headers, found: list[Exchange]) -> None:
        """Headers, or what comes after a body: only the first of a request, and of a response, say what they are."""
        stream = self._streams.get(first.stream)
        if side is self._client:
            if stream is None:
                self._ask(side, first.stream, headers)
        elif stream is not None and stream.answered is None:
            self._answer(first.stream, stream, headers, side.first_ns, found)
        elif stream is not None and stream.answered:
            stream.answered = stream.answered._replace(grpc_status=_grpc_status(headers))

    def _could_not_tell(self, side: _Side, first: _Frame) -> None:
        """Headers that were lost: a request's leave a stream of which nothing is known, a response's end it."""
        if side is self._client and first.stream not in self._streams:
            self._ask(side, first.stream, {})
        elif side is self._server and (stream := self._streams.get(first.stream)) and not stream.answered:
            # It may have been a 1xx: what comes next could be taken for the response, or be its end.
            del self._streams[first.stream]
            self.untold += 1

    def _ask(self, side: _Side, number: int, headers: _Headers) -> None:
        # Of one that is over these are trailers; an even one is the server's to begin.
        if number <= self._newest or not number & 1:
            return
        self._newest = number
        made = self._streams[number] = _Stream(side.now_ns)
        method, target = headers.get(b":method", _UNKNOWN), headers.get(b":path", _UNKNOWN)
        authority = headers.get(b":authority") or headers.get(b"host") or b""
        # Without a path it is an authority that is asked for.
        is_authority = method == b"CONNECT" and b":path" not in headers
        target = authority if is_authority else target
        if method in METHODS and target != _UNKNOWN:
            made.method = method.decode()
            made.path, ended = path_of(target[:LONGEST_LINE], is_authority)
            made.truncated = len(target) > LONGEST_LINE and not ended
        if _PRINTABLE.match(authority):
            made.host = authority.decode()
        if len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)
            self.untold += 1

    def _answer(self, number: int, stream: _Stream, headers: _Headers, first_ns: int, found: list[Exchange]) -> None:
        status = headers.get(b":status", _UNKNOWN)
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

    def _over(self, side: _Side, number: int, found: list[Exchange], is_reset: bool = False) -> None:
        """One side has said all; the stream is over when the server has, or when either wants no more of it."""
        if (side is self._server or is_reset) and (stream := self._streams.pop(number, None)) and stream.answered:
            found.append(stream.answered)


def _grpc_status(headers: _Headers) -> int | None:
    status = headers.get(b"grpc-status", b"")
    return int(status) if _GRPC_STATUS.match(status) else None
