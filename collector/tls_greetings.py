"""Hellos of TLS clients, put together of pieces until the name they ask for is there; all of it is bounded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from collector.http_exchanges import Ends
from collector.protocols.tls import server_name

# The pieces of one hello come in a row: more than one at a time are of different processors.
BOUND = 1024
LONGEST = 1 << 14


@dataclass(slots=True)
class _Greeting:
    ends: Ends
    data: bytes | None = b""
    """None once nothing more is wanted of it."""


class Greetings:
    """Of too many the one that began first is forgotten."""

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._held: OrderedDict[object, _Greeting] = OrderedDict()

    def __contains__(self, connection: object) -> bool:
        return connection in self._held

    def began(self, connection: object, ends: Ends) -> None:
        self._held[connection] = _Greeting(ends)
        self._held.move_to_end(connection)
        if len(self._held) > self._bound:
            self._held.popitem(last=False)

    def went_on(self, connection: object, offset: int, data: bytes) -> tuple[Ends, str] | None:
        """Who asks and for whom, once it is known. Of a connection that has not begun, or has a gap, nothing is."""
        held = self._held.get(connection)
        if held is None or held.data is None:
            return None
        held.data = held.data + data if offset == len(held.data) else None
        name = server_name(held.data) if held.data else None
        if name or (held.data and len(held.data) > LONGEST):
            held.data = None
        return (held.ends, name) if name else None
