"""HTTP/1 as it goes by: requests paired with their responses, out of what each side of a connection sent.

Not h11: that speaks for one of the sides, wants every byte, and takes a broken message for the end. Here bytes may be
missing where a capture was cut, and what cannot be followed is only waited out.
"""

from __future__ import annotations

import re

from collector.protocols.exchange import METHODS, PRINTABLE, Exchange, path_of
from collector.protocols.http1_asked import Asked, Request
from collector.protocols.http1_lines import (
    REQUEST_STARTS,
    RESPONSE_STARTS,
    STATUS,
    TOKEN,
    VERSIONS,
    may_answer,
    may_ask,
)
from collector.protocols.http1_side import Side, State

LONGEST_HEAD = 1 << 16
# Requests a client may send before the first is answered: more than browsers, or anybody else, do.
MAX_PIPELINED = 64

# As some clients send after a body.
_LINE_END = 2

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}(?=[;\s]|\Z)")
_LENGTH = re.compile(rb"\d{1,18}\Z")


class Connection:
    """Feed it what either side sent, in order, with the time; it gives the exchanges whose final status line is there.

    Nothing in it grows with what it is fed. Raises nothing, whatever that is.
    """

    def __init__(self, is_sure: bool = False) -> None:
        """`is_sure`: it is HTTP/1, so that what makes no sense is only waited out."""
        self._no_message = State.LOST if is_sure else State.OVER
        self._client, self._server = Side(REQUEST_STARTS, may_ask), Side(RESPONSE_STARTS, may_answer)
        self._asked = Asked()
        self._asking: Request | None = None
        """The last request, as long as more of it may come."""
        self._answering = False
        """Whether the server was the last to send."""

    @property
    def untold(self) -> int:
        """Requests whose responses were lost."""
        return self._asked.untold

    @property
    def waiting(self) -> int:
        """Requests that have no response yet."""
        return self._asked.told

    @property
    def is_over(self) -> bool:
        """Whether it is not HTTP/1, or no longer: nothing more will come of it."""
        return State.OVER in (self._client.state, self._server.state)

    def request(self, data: bytes, time_ns: int, missing: int = 0) -> None:
        """What the client sent; `missing` bytes after it were not captured. Without either: something went by."""
        if self._asking and not self._begins_another(data):
            self._asking.last_ns = time_ns
        elif (not data and not missing) or (self._answering and self._client.state is State.LOST):
            self._ask_unseen(time_ns)
        if data:
            self._answering = False
        self._feed(self._client, data, time_ns, missing)
        self._answering = False

    def waits(self, request: bytes, time_ns: int) -> None:
        """That a request of this method and path waits for its response. More of it may come, nobody knows how much."""
        self.request(request + b" HTTP/1.1\r\n", time_ns)
        self._client.state = State.START

    def response(self, data: bytes, time_ns: int, missing: int = 0) -> list[Exchange]:
        """What the server sent; without either of both something went by."""
        if not data and not missing:
            self._answer_unseen(time_ns)
        self._answering = True
        return self._feed(self._server, data, time_ns, missing)

    def _feed(self, side: Side, data: bytes, time_ns: int, missing: int) -> list[Exchange]:
        found: list[Exchange] = []
        if self._no_message is State.LOST and side.goes_on_otherwise and data.startswith(side.starts):
            side.stop()
        if self.is_over or (side.state is State.LOST and not self._take_up(side, data)):
            return found
        begun_before = side.state is State.START and side.held
        self._go(side, data, time_ns, found)
        if begun_before and side.state is State.LOST and self._take_up(side, data):
            # The same, of which it takes both to tell.
            self._go(side, data, time_ns, found)
        if missing and not self.is_over:
            self._skip(side, missing, time_ns, found)
        return found

    def _take_up(self, side: Side, data: bytes) -> bool:
        """Whether a message seems to begin with the data, after something that could not be followed."""
        if not data.startswith(side.starts):
            return False
        side.state = State.START
        if side is self._server:
            self._asked.lose_all_but_the_last()
        return True

    def _go(self, side: Side, data: bytes, time_ns: int, found: list[Exchange]) -> None:
        at = 0
        while at < len(data) and not self.is_over and side.state is not State.LOST:
            if side.state is State.BODY:
                at += self._take(side, len(data) - at)
            elif side.state is State.START and not side.held and data[at] in b"\r\n":
                at += 1
            else:
                at = self._line(side, data, at, time_ns, found)

    def _begins_another(self, data: bytes) -> bool:
        """Whether the client's next request may begin with the data: where one has ended, and where no end is known."""
        side = self._client
        line = (side.held + data).partition(b"\n")[0]
        return bool(data) and side.state in (State.START, State.LOST) and side.could_begin(line)

    def _ask_unseen(self, time_ns: int) -> None:
        """Something of the client's went by: within a message that is followed it is of that, else of another."""
        side = self._client
        if side.state is State.START and side.held:
            side.stop()
        if side.state in (State.START, State.LOST):
            self._asked.begin_unseen(time_ns)

    def _answer_unseen(self, time_ns: int) -> None:
        if self._server.state is State.START and not self._server.held:
            self._asked.lose_before(time_ns)

    def _take(self, side: Side, most: int) -> int:
        """Takes of a body what there is of it."""
        taken = min(side.left, most)
        side.left -= taken
        if not side.left:
            if side.chunked:
                side.state = State.CHUNK_END
            else:
                self._end(side)
        return taken

    def _skip(self, side: Side, missing: int, time_ns: int, found: list[Exchange]) -> None:
        beyond = missing - side.left if side.state is State.BODY else missing
        if side.state is State.BODY and beyond <= 0:
            self._take(side, missing)
            return
        if side.state is State.BODY:
            self._take(side, side.left)
        if side.state is State.START and side.held:
            self._cut(side, found)
        elif side is self._client and side.state is State.START and beyond > _LINE_END:
            self._ask_unseen(time_ns)
        if side.state is not State.OVER:
            side.stop()
        if side is self._client and self._answering:
            # The response came before what is missing, which is of another request then.
            self._asking = None
            self._answer_unseen(time_ns)
            self._ask_unseen(time_ns)

    def _cut(self, side: Side, found: list[Exchange]) -> None:
        """Of the first line nothing more will come than what is held."""
        side.cut = True
        self._start(side, side.held, found)
        side.held, side.cut = b"", False

    def _line(self, side: Side, data: bytes, at: int, time_ns: int, found: list[Exchange]) -> int:
        if side.state is State.START and not side.held:
            side.begin(time_ns)
        line, at = side.line(data, at)
        if side.state is State.START and not side.could_begin(side.held if line is None else line):
            side.stop(self._no_message)
            return at
        if line is None:
            return at
        match side.state:
            case State.START:
                self._start(side, line, found)
            case State.HEAD:
                self._head(side, line)
            case State.CHUNK_SIZE:
                self._chunk(side, line)
            case State.CHUNK_END:
                side.state = State.LOST if line.strip() else State.CHUNK_SIZE
            case State.TRAILER:
                self._trailer(side, line)
        side.cut = False
        return at

    def _start(self, side: Side, line: bytes, found: list[Exchange]) -> None:
        begun = self._status(side, line, found) if side is self._server else self._ask(line, side.cut, side.first_ns)
        if side.state is not State.OVER:
            side.state = State.HEAD if begun else self._no_message

    def _ask(self, line: bytes, is_cut: bool, time_ns: int) -> bool:
        """Whether the line is a request's; then it waits for its response, which of other methods is not told."""
        method, _, rest = line.partition(b" ")
        target, space, version = rest.partition(b" ")
        version = version.rstrip(b"\r")
        is_ours = method in METHODS
        if not (is_ours or (self._client.others and TOKEN.match(line))) or len(self._asked) >= MAX_PIPELINED:
            return False
        if version not in VERSIONS and not (is_cut and any(known.startswith(version) for known in VERSIONS)):
            return False
        path, ended = path_of(target, method == b"CONNECT") if is_ours else ("", False)
        self._client.others = TOKEN
        self._asking = Request(method.decode(), path, not (space or ended), time_ns)
        self._asked.begin(self._asking)
        return True

    def _status(self, side: Side, line: bytes, found: list[Exchange]) -> bool:
        """Whether the line is a response's; a final one ends the exchange it belongs to."""
        told = STATUS.match(line)
        if told is None:
            return False
        side.status = int(told[2])
        if side.status < 200 and side.status != 101:
            return True
        asker = self._client
        if not self._asked and asker.state is State.START and asker.held:
            # What it answers has not ended for us: the rest is late, or lost.
            self._cut(asker, found)
        if asked := self._asked.take():
            side.method = asked.method
            if asked is self._asking and asker.state in (State.START, State.LOST):
                # Whatever else comes is of another, or of nobody's interest any more.
                self._asking = None
            if asked.path:
                found.append(Exchange(asked.method, asked.path, asked.truncated, side.status, told[1].decode(),
                                      max(0, side.first_ns - asked.last_ns), asked.host))
        return True

    def _head(self, side: Side, line: bytes) -> None:
        side.head_size += len(line) + 1
        if side.head_size > LONGEST_HEAD:
            side.state = State.LOST
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
            case b"host" if side is self._client and self._asking and PRINTABLE.match(value):
                self._asking.host = value.decode()

    def _body(self, side: Side) -> None:
        """What follows the head (RFC 9112 6.3)."""
        if side is self._server:
            if side.status == 101 or (side.method == "CONNECT" and side.status < 300):
                side.state = State.OVER
                return
            if side.method == "HEAD" or side.status < 200 or side.status in (204, 304):
                self._end(side)
                return
            if not side.method:
                # It may answer a HEAD we have not seen.
                side.state = State.LOST
                return
        if side.chunked:
            side.state = State.CHUNK_SIZE
        elif side.length:
            side.left = side.length
            side.state = State.BODY if side.left > 0 else State.LOST
        elif side is self._server and side.length is None:
            side.state = State.OVER  # the body lasts as long as the connection
        else:
            self._end(side)

    def _chunk(self, side: Side, line: bytes) -> None:
        size = _SIZE.match(line.strip())
        side.left = int(size[0], 16) if size else 0
        side.state = State.LOST if size is None else State.BODY if side.left else State.TRAILER

    def _trailer(self, side: Side, line: bytes) -> None:
        side.head_size += len(line) + 1
        if not line.strip():
            self._end(side)
        elif side.head_size > LONGEST_HEAD:
            side.state = State.LOST

    def _end(self, side: Side) -> None:
        side.state = State.START
        if side is self._client:
            self._asking = None
