"""Queries and what became of them: pairs of DNS messages out of packets, each query once, however often it is seen."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from collector.protocols import dns
from collector.protocols.packets import UDP, Segment
from collector.protocols.streams import Connections
from collector.sampling import is_port_kept

PORT = 53
TIMEOUT_NS = 6 * 10**9
NO_REPLY = -1
MAX_PENDING = 1 << 16
# A copy of a query on its way through one more interface may be captured after the answer, but hardly later than this.
_ECHO_NS = 1_000_000
_MAX_ANSWERED = 8192
# A query that gets another sender's address on its way (MASQUERADE, SNAT) leaves hardly later than this.
_TRANSLATED_NS = 10_000_000
_MAX_PASSING = 8192
_STREAM_IDLE_S = 60.0

# The network namespace, client and server with their ports, the protocol, the message's number.
_Key = tuple[int, bytes, int, bytes, int, int, int]


class Exchange(NamedTuple):
    """One query that was answered, or was not in time: then `rcode` is -1 and `latency_ns` 0.

    `behind` is who sent the same bytes to the same server in the same namespace a moment before, empty for nobody: this
    may be that query under another address.
    """

    netns: int
    client: bytes
    client_port: int
    server: bytes
    server_port: int
    transport: int
    rcode: int
    latency_ns: int
    question: bytes
    addresses: tuple[tuple[bytes, int], ...] = ()
    behind: bytes = b""


class _Query(NamedTuple):
    question: bytes
    time_ns: int
    behind: bytes = b""


class Exchanges:
    """Give it segments and the time; it gives exchanges. Everything it holds is bounded.

    A query sent again, or seen on several interfaces, is one query, and its time is the first one's: so long has
    whoever asked been waiting. A response nobody is known to have asked for is counted in `unasked`.
    """

    def __init__(self, max_pending: int = MAX_PENDING) -> None:
        self._max_pending = max_pending
        self._pending: OrderedDict[_Key, _Query] = OrderedDict()
        self._answered: OrderedDict[_Key, _Query] = OrderedDict()
        # By namespace, server, protocol and what is asked, byte by byte: by whom lately.
        self._passing: OrderedDict[tuple[int, bytes, int, int], tuple[bytes, int]] = OrderedDict()
        self._connections = Connections()
        self.lost: Counter[str] = Counter()
        """Queries that found no room, and that another with their number took the place of."""
        self.unasked = 0
        self._one_of = 1

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def gaps(self) -> int:
        return self._connections.gaps

    def sample(self, one_of: int) -> None:
        """From now on only the queries of one client's port of so many, and no word of the others that wait."""
        self._one_of = one_of
        self._pending = OrderedDict((key, query) for key, query in self._pending.items()
                                    if is_port_kept(one_of, key[2]))

    def saw(self, netns: int, segment: Segment, time_ns: int) -> list[Exchange]:
        """What this segment finishes; `time_ns` is when it passed, since the epoch."""
        if segment.transport == UDP:
            finished = self._saw_message(netns, segment, segment.payload, time_ns)
            return [finished] if finished else []
        messages = self._connections.add(netns, segment, time_ns / 1e9)
        return [done for message in messages if (done := self._saw_message(netns, segment, message, time_ns))]

    def expired(self, now_ns: int) -> Iterator[Exchange]:
        """The queries that have waited too long by now."""
        self._connections.expire(now_ns / 1e9 - _STREAM_IDLE_S)
        # Copies come at once; answers sent again hardly later than whoever asked would wait.
        while self._answered and abs(now_ns - next(iter(self._answered.values())).time_ns) > TIMEOUT_NS:
            self._answered.popitem(last=False)
        while self._pending:
            key, query = next(iter(self._pending.items()))
            # What lies in the future was sent before somebody set the clock back.
            if abs(now_ns - query.time_ns) <= TIMEOUT_NS:
                return
            del self._pending[key]
            yield _in_vain(key, query)

    def left(self, netns: int) -> list[Exchange]:
        """The queries that wait in a namespace nobody is in any more: no answer will come there."""
        waiting = [key for key in self._pending if key[0] == netns]
        return [_in_vain(key, self._pending.pop(key)) for key in waiting]

    def _saw_message(self, netns: int, segment: Segment, wire: bytes, time_ns: int) -> Exchange | None:
        message = dns.parse(wire)
        if message is None:
            return None
        if message.is_response:
            if segment.source_port != PORT:
                return None
            if not is_port_kept(self._one_of, segment.destination_port):
                return None
            key = (netns, segment.destination, segment.destination_port, segment.source, PORT, segment.transport,
                   message.id)
            return self._saw_response(key, message, time_ns)
        if segment.destination_port == PORT and is_port_kept(self._one_of, segment.source_port):
            key = (netns, segment.source, segment.source_port, segment.destination, PORT, segment.transport,
                   message.id)
            self._saw_query(key, _Query(message.question, time_ns), hash(wire))
        return None

    def _saw_query(self, key: _Key, query: _Query, content: int) -> None:
        before = self._pending.get(key)
        if before is not None:
            if before.question == query.question:
                return
            self.lost["dns queries replaced"] += 1
            del self._pending[key]
        answered = self._answered.get(key)
        if answered and answered.question == query.question and query.time_ns <= answered.time_ns + _ECHO_NS:
            return
        if len(self._pending) >= self._max_pending:
            self.lost["dns queries"] += 1
            return
        self._pending[key] = query._replace(behind=self._behind(key, content, query.time_ns))

    def _behind(self, key: _Key, content: int, time_ns: int) -> bytes:
        netns, client, _, server, _, transport, _ = key
        way = (netns, server, transport, content)
        before, before_ns = self._passing.pop(way, (client, 0))
        if before != client and abs(time_ns - before_ns) <= _TRANSLATED_NS:
            return before
        self._passing[way] = (client, time_ns)
        while len(self._passing) > _MAX_PASSING or abs(time_ns - self._oldest_passing_ns()) > _TRANSLATED_NS:
            self._passing.popitem(last=False)
        return b""

    def _oldest_passing_ns(self) -> int:
        return next(iter(self._passing.values()))[1]

    def _saw_response(self, key: _Key, message: dns.Message, time_ns: int) -> Exchange | None:
        query = self._pending.get(key)
        if query is None or (message.question and message.question != query.question):
            answered = self._answered.get(key)
            if answered is None or answered.question != message.question:
                self.unasked += 1
            return None
        del self._pending[key]
        self._answered[key] = _Query(query.question, time_ns)
        self._answered.move_to_end(key)
        if len(self._answered) > _MAX_ANSWERED:
            self._answered.popitem(last=False)
        latency_ns = max(0, time_ns - query.time_ns)
        if latency_ns > TIMEOUT_NS:
            return _in_vain(key, query)
        return Exchange(*key[:6], message.rcode, latency_ns, query.question, message.addresses, query.behind)


def _in_vain(key: _Key, query: _Query) -> Exchange:
    return Exchange(*key[:6], NO_REPLY, 0, query.question, behind=query.behind)
