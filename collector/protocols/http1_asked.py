"""Requests of an HTTP/1 connection that wait for their responses, those among them that went by unseen."""

from __future__ import annotations

from collections import deque


class Request:
    """`last_ns` is when the last of it went by. Of one that was not seen no method is known."""

    __slots__ = ("host", "last_ns", "method", "path", "truncated")

    def __init__(self, method: str, path: str, truncated: bool, last_ns: int) -> None:
        self.method, self.path, self.truncated, self.last_ns = method, path, truncated, last_ns
        self.host = ""


class Asked:
    """In the order in which they will be answered.

    Where something was lost it goes by what nearly all clients do: they wait for each response before they ask again.
    """

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()
        self.untold = 0
        """Those whose responses were lost."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def told(self) -> int:
        """How many of them are known, and would be told of."""
        return sum(bool(request.path) for request in self._waiting)

    def begin(self, request: Request) -> None:
        while self._waiting and not self._waiting[-1].method:
            self._waiting.pop()
        self._waiting.append(request)

    def begin_unseen(self, time_ns: int) -> None:
        """One may have begun, of which nothing is known: until the next does, a response is taken for its."""
        if not self._waiting or self._waiting[-1].method:
            self._waiting.append(Request("", "", False, time_ns))

    def take(self) -> Request | None:
        return self._waiting.popleft() if self._waiting else None

    def lose_before(self, time_ns: int) -> None:
        """Those that ended before were answered, and it was not seen."""
        while self._waiting and self._waiting[0].last_ns < time_ns:
            self._lose()

    def lose_all_but_the_last(self) -> None:
        while len(self._waiting) > 1:
            self._lose()

    def _lose(self) -> None:
        self.untold += bool(self._waiting.popleft().path)
