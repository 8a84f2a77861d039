"""HTTP/1 as it goes by: requests paired with their responses, out of what each side of a connection sent.

Not h11: that speaks for one of the sides, wants every byte, and takes a broken message for the end. Here bytes may be
missing where a capture was cut, and what cannot be followed is only waited out.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum, auto
from typing import NamedTuple

METHODS = frozenset((b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"))
# Of one line; what is longer is cut, and a path that does not end before is told to be.
LONGEST_LINE = 4096
LONGEST_HEAD = 1 << 16
# Requests a client may send before the first is answered: more than browsers, or anybody else, do.
MAX_PIPELINED = 64

_REQUEST_STARTS = tuple(method + b" " for method in METHODS)
_RESPONSE_STARTS = (b"HTTP/1.0 ", b"HTTP/1.1 ")
_VERSIONS = (b"HTTP/1.0", b"HTTP/1.1")
_STATUS = re.compile(rb"HTTP/(1\.[01]) ([1-5]\d\d)(?: |\r?\Z)")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_PRINTABLE = re.compile(rb"[!-~]*\Z")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}(?=[;\s]|\Z)")
_LENGTH = re.compile(rb"\d{1,18}\Z")


class Exchange(NamedTuple):
    """One request and its final response; `http_version` is the response's.

    `latency_ns` is from the last piece of the request that came before it to the first of the response. `truncated`:
    the path does not end within what was captured. `grpc_status` is what gRPC, over HTTP/2, says how its call ended.
    """

    method: str
    path: str
    truncated: bool
    status_code: int
    http_version: str
    latency_ns: int
    host: str
    grpc_status: int | None = None


class _State(Enum):
    START = auto()
    HEAD = auto()
    BODY = auto()
    CHUNK_SIZE = auto()
    CHUNK_END = auto()
    TRAILER = auto()
    LOST = auto()
    """Bytes are missing, or make no sense: until a piece begins like a message."""
    OVER = auto()
    """Nothing that comes is HTTP/1: it is never looked at again."""


class _Request:
    __slots__ = ("host", "last_ns", "method", "path", "truncated")

    def __init__(self, method: str, path: str, truncated: bool, last_ns: int) -> None:
        self.method, self.path, self.truncated, self.last_ns = method, path, truncated, last_ns
        self.host = ""


class _Side:
    """Where one direction is in its message. Holds no more than one line."""

    __slots__ = ("chunked", "cut", "first_ns", "head_size", "held", "left", "length", "method", "starts", "state",
                 "status")

    def __init__(self, starts: tuple[bytes, ...]) -> None:
        self.starts = starts
        self.state = _State.START
        self.held = b""
        self.cut = False
        self.begin(0)

    def begin(self, time_ns: int) -> None:
        """A new message, of which nothing is known but when it began."""
        self.first_ns = time_ns
        self.left = self.head_size = self.status = 0
        self.length: int | None = None
        self.chunked = False
        self.method = ""

    def could_begin(self, data: bytes) -> bool:
        """Whether the data is a message's beginning, or the beginning of one."""
        return any(data.startswith(start) or start.startswith(data) for start in self.starts)

    def line(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """The line that goes on at `at`, without its end, and where the next begins; None while it has not ended."""
        end = data.find(b"\n", at)
        piece = data[at:end if end >= 0 else len(data)]
        room = LONGEST_LINE - len(self.held)
        self.cut = self.cut or len(piece) > room
        self.held += piece[:room]
        if end < 0:
            return None, len(data)
        line, self.held = self.held, b""
        return line, end + 1


class Connection:
    """Feed it what either side sent, in order, with the time; it gives the exchanges whose final status line is there.

    Nothing in it grows with what it is fed. Raises nothing, whatever that is.
    """

    def __init__(self) -> None:
        self._client, self._server = _Side(_REQUEST_STARTS), _Side(_RESPONSE_STARTS)
        self._asked: deque[_Request] = deque()
        self._asking: _Request | None = None
        """The last request, as long as more of it may come."""

    @property
    def is_over(self) -> bool:
        """Whether it is not HTTP/1, or no longer: nothing more will come of it."""
        return _State.OVER in (self._client.state, self._server.state)

    def request(self, data: bytes, time_ns: int, missing: int = 0) -> None:
        """What the client sent; `missing` bytes after it were not captured."""
        if self._asking:
            self._asking.last_ns = time_ns
        self._feed(self._client, data, time_ns, missing)

    def response(self, data: bytes, time_ns: int, missing: int = 0) -> list[Exchange]:
        """What the server sent."""
        return self._feed(self._server, data, time_ns, missing)

    def _feed(self, side: _Side, data: bytes, time_ns: int, missing: int) -> list[Exchange]:
        found: list[Exchange] = []
        if self.is_over:
            return found
        if side.state is _State.LOST:
            if not data.startswith(side.starts):
                return found
            side.state = _State.START
        at = 0
        while at < len(data) and not self.is_over and side.state is not _State.LOST:
            if side.state is _State.BODY:
                at += self._take(side, len(data) - at)
            elif side.state is _State.START and not side.held and data[at] in b"\r\n":
                at += 1  # as some clients send after a body
            else:
                at = self._line(side, data, at, time_ns, found)
        if missing and not self.is_over:
            self._skip(side, missing, time_ns, found)
        return found

    def _take(self, side: _Side, most: int) -> int:
        """Takes of a body what there is of it."""
        taken = min(side.left, most)
        side.left -= taken
        if not side.left:
            if side.chunked:
                side.state = _State.CHUNK_END
            else:
                self._end(side)
        return taken

    def _skip(self, side: _Side, missing: int, time_ns: int, found: list[Exchange]) -> None:
        if side.state is _State.BODY and missing <= side.left:
            self._take(side, missing)
            return
        if side.state is _State.START and side.held:
            side.cut = True
            self._start(side, side.held, found)
        if side.state is not _State.OVER:
            side.state, side.held, side.cut = _State.LOST, b"", False

    def _line(self, side: _Side, data: bytes, at: int, time_ns: int, found: list[Exchange]) -> int:
        if side.state is _State.START and not side.held:
            side.begin(time_ns)
        line, at = side.line(data, at)
        if side.state is _State.START and not side.could_begin(side.held if line is None else line):
            side.state = _State.OVER
            return at
        if line is None:
            return at
        match side.state:
            case _State.START:
                self._start(side, line, found)
            case _State.HEAD:
                self._head(side, line)
            case _State.CHUNK_SIZE:
                self._chunk(side, line)
            case _State.CHUNK_END:
                side.state = _State.LOST if line.strip() else _State.CHUNK_SIZE
            case _State.TRAILER:
                self._trailer(side, line)
        side.cut = False
        return at

    def _start(self, side: _Side, line: bytes, found: list[Exchange]) -> None:
        begun = self._status(side, line, found) if side is self._server else self._ask(line, side.cut, side.first_ns)
        if side.state is not _State.OVER:
            side.state = _State.HEAD if begun else _State.OVER

    def _ask(self, line: bytes, is_cut: bool, time_ns: int) -> bool:
        """Whether the line is a request's; then it waits for its response."""
        method, _, rest = line.partition(b" ")
        target, space, version = rest.partition(b" ")
        version = version.rstrip(b"\r")
        if method not in METHODS or len(self._asked) >= MAX_PIPELINED:
            return False
        if version not in _VERSIONS and not (is_cut and any(known.startswith(version) for known in _VERSIONS)):
            return False
        path, ended = path_of(target, method == b"CONNECT")
        self._asking = _Request(method.decode(), path, not (space or ended), time_ns)
        self._asked.append(self._asking)
        return True

    def _status(self, side: _Side, line: bytes, found: list[Exchange]) -> bool:
        """Whether the line is a response's; a final one ends the exchange it belongs to."""
        told = _STATUS.match(line)
        if told is None:
            return False
        side.status = int(told[2])
        if side.status < 200 and side.status != 101:
            return True
        if self._asked:
            asked = self._asked.popleft()
            side.method = asked.method
            if asked.path:
                found.append(Exchange(asked.method, asked.path, asked.truncated, side.status, told[1].decode(),
                                      max(0, side.first_ns - asked.last_ns), asked.host))
        return True

    def _head(self, side: _Side, line: bytes) -> None:
        side.head_size += len(line) + 1
        if side.head_size > LONGEST_HEAD:
            side.state = _State.LOST
            return
        if not line.strip():
            self._body(side)
            return
        name, _, value = line.partition(b":")
        value = value.strip()
        match name.lower():
            case b"content-length":
                same = side.length is None or value == b"%d" % side.length
                side.length = int(value) if _LENGTH.match(value) and same else -1
            case b"transfer-encoding":
                side.chunked = value.lower().endswith(b"chunked")
            case b"host" if side is self._client and self._asking and _PRINTABLE.match(value):
                self._asking.host = value.decode()

    def _body(self, side: _Side) -> None:
        """What follows the head (RFC 9112 6.3)."""
        if side is self._server:
            if side.status == 101 or (side.method == "CONNECT" and side.status < 300):
                side.state = _State.OVER
                return
            if side.method == "HEAD" or side.status < 200 or side.status in (204, 304):
                self._end(side)
                return
            if not side.method:
                # It may answer a HEAD we have not seen.
                side.state = _State.LOST
                return
        if side.chunked:
            side.state = _State.CHUNK_SIZE
        elif side.length:
            side.left = side.length
            side.state = _State.BODY if side.left > 0 else _State.LOST
        elif side is self._server and side.length is None:
            side.state = _State.OVER  # the body lasts as long as the connection
        else:
            self._end(side)

    def _chunk(self, side: _Side, line: bytes) -> None:
        size = _SIZE.match(line.strip())
        side.left = int(size[0], 16) if size else 0
        side.state = _State.LOST if size is None else _State.BODY if side.left else _State.TRAILER

    def _trailer(self, side: _Side, line: bytes) -> None:
        side.head_size += len(line) + 1
        if not line.strip():
            self._end(side)
        elif side.head_size > LONGEST_HEAD:
            side.state = _State.LOST

    def _end(self, side: _Side) -> None:
        side.state = _State.START
        if side is self._client:
            self._asking = None


def path_of(target: bytes, is_authority: bool = False) -> tuple[str, bool]:
    """The path of a request's target and whether something after it ended it; empty for one that is not printable.

    The absolute form loses its scheme and host, every form what follows ``?`` or ``#``; no path at all is ``/``.
    """
    if not _PRINTABLE.match(target):
        return "", False
    text = target.decode()
    if is_authority:
        return text or "/", False
    text = text[origin.end():] if (origin := _ORIGIN.match(text)) else text
    path = re.split(r"[?#]", text, maxsplit=1)
    return path[0] or "/", len(path) > 1
