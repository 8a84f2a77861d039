"""Pieces of what HTTP connections carry, as programs hand them over, made into exchanges; all of it is bounded."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from collector.protocols import http1, http2
from collector.protocols.exchange import Exchange

MAX_CONNECTIONS = 1 << 14
IDLE_NS = 600 * 10**9
# Of HTTP/2's preface, what the kernel looks at before it hands a connection over.
_KNOWN_BY = 8


class Ends(NamedTuple):
    """Whose connection it is. Addresses are 16 bytes, v4-mapped for IPv4; a client `asks`, a server is asked."""

    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    netns: int
    pid: int
    process_name: str
    asks: bool
    is_tls: bool


class Seen(NamedTuple):
    """Exchanges that are alike; there were `times`, and `latency_ns` is the sum of theirs."""

    ends: Ends
    exchange: Exchange
    times: int
    latency_ns: int


class Piece(NamedTuple):
    """A piece of what moved over one connection, in one direction.

    `connection` is any name that is one connection's for as long as it lasts. `offset` is how many bytes went before
    it in its direction; the last of those that went the other way did so at `other_ns`. Of the bytes right before it
    `unseen` are known to have gone in calls that nobody was told of.
    """

    connection: object
    time_ns: int
    written: bool
    offset: int
    data: bytes
    other_ns: int
    unseen: int = 0


class _Followed:
    __slots__ = ("answered_ns", "asked_ns", "connection", "ends", "gone", "last_ns")

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        # HTTP/2 once its preface was seen, with which the kernel hands a connection over.
        self.connection: http1.Connection | http2.Connection = http1.Connection(is_sure=True)
        # Bytes that have gone, by whether they were written; None before the first piece.
        self.gone: list[int | None] = [None, None]
        self.answered_ns = self.asked_ns = self.last_ns = 0

    def feed(self, is_request: bool, data: bytes, time_ns: int, missing: int = 0) -> list[Exchange]:
        if is_request:
            if self.gone == [None, None] and data.startswith(http2.PREFACE[:_KNOWN_BY]):
                self.connection = http2.Connection()
            self.asked_ns = time_ns
            return self.connection.request(data, time_ns, missing) or []
        self.answered_ns = time_ns
        return self.connection.response(data, time_ns, missing)


class HttpConnections:
    """Tell it what happens, oldest first. Of too many connections the one unheard of for longest is forgotten."""

    def __init__(self, max_connections: int = MAX_CONNECTIONS) -> None:
        self._max = max_connections
        self._followed: OrderedDict[object, _Followed] = OrderedDict()
        self.strangers = 0
        """Pieces of connections whose beginning was lost."""
        self.forgotten = 0
        self._untold = 0

    @property
    def untold(self) -> int:
        """Exchanges of which one half, or what came before it, was lost, or whose response took over ten minutes."""
        return self._untold

    def __len__(self) -> int:
        return len(self._followed)

    def __contains__(self, connection: object) -> bool:
        return connection in self._followed

    def opened(self, connection: object, ends: Ends, time_ns: int, is_http2: bool = False) -> None:
        """From here on; with `is_http2` in the middle of it, else HTTP/2 begins with its preface."""
        self._followed[connection] = made = _Followed(ends)
        if is_http2:
            made.connection = http2.Connection(is_begun=True)
        made.last_ns = time_ns
        self._followed.move_to_end(connection)
        if len(self._followed) > self._max:
            self._followed.popitem(last=False)
            self.forgotten += 1

    def asked(self, connection: object, request: bytes, time_ns: int) -> None:
        """That this request, its method and path, waits for its response since before we were told of anything."""
        if (followed := self._followed.get(connection)) and isinstance(followed.connection, http1.Connection):
            followed.asked_ns = time_ns
            followed.connection.waits(request, time_ns)

    def moved(self, piece: Piece) -> list[Seen]:
        """The exchanges whose response this piece has the status of."""
        followed = self._followed.get(piece.connection)
        if followed is None:
            self.strangers += 1
            return []
        self._followed.move_to_end(piece.connection)
        followed.last_ns = piece.time_ns
        is_request = piece.written == followed.ends.asks
        # More went the other way, of which no piece was handed over, or it was lost.
        if piece.other_ns > (followed.answered_ns if is_request else followed.asked_ns):
            followed.feed(not is_request, b"", piece.other_ns)
        before = followed.gone[piece.written]
        if before is None:
            before = piece.offset - piece.unseen
        found: list[Exchange] = []
        untold = followed.connection.untold
        if piece.offset > before:
            found += followed.feed(is_request, b"", piece.time_ns, piece.offset - before)
        if data := piece.data[max(0, before - piece.offset):]:
            found += followed.feed(is_request, data, piece.time_ns)
        self._untold += followed.connection.untold - untold
        followed.gone[piece.written] = max(before, piece.offset + len(piece.data))
        return [Seen(followed.ends, exchange, 1, exchange.latency_ns) for exchange in found]

    def closed(self, connection: object) -> None:
        self._followed.pop(connection, None)

    def expire(self, now_ns: int) -> None:
        """Forgets connections unheard of for ten minutes, with what waits there. Should one go on, it is taken up."""
        while self._followed:
            connection, followed = next(iter(self._followed.items()))
            if now_ns - followed.last_ns < IDLE_NS:
                return
            self._untold += followed.connection.waiting
            del self._followed[connection]
