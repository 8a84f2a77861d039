"""One direction of an HTTP/1 connection: where it is in its message, and the line that goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto

from collector.protocols.exchange import LONGEST_LINE


class State(Enum):
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


class Side:
    """Where one direction is in its message. Holds no more than one line."""

    __slots__ = ("chunked", "cut", "first_ns", "goes_on", "head_size", "held", "left", "length", "method", "others",
                 "starts", "state", "status")

    def __init__(self, starts: tuple[bytes, ...], goes_on: Callable[[bytes], bool]) -> None:
        """`goes_on` says whether what begins with one of the `starts` is a first line as far as it is there."""
        self.starts, self.goes_on = starts, goes_on
        self.others: re.Pattern[bytes] | None = None
        """What else messages may begin with."""
        self.state = State.START
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

    def stop(self, state: State = State.LOST) -> None:
        """What it is in is not followed any further."""
        self.state, self.held, self.cut = state, b"", False

    def could_begin(self, data: bytes) -> bool:
        """Whether the data is a message's beginning, or the beginning of one."""
        if any(start.startswith(data) for start in self.starts):
            return True
        begins = data.startswith(self.starts) or (self.others is not None and self.others.match(data) is not None)
        return begins and self.goes_on(data)

    @property
    def goes_on_otherwise(self) -> bool:
        """Whether what is there cannot go on like a message begins: less than one's first word, which a body's end may
        look like, or whole lines of a head, of which the rest was lost then.
        """
        if self.state is State.START:
            return bool(self.held) and not self.held.startswith(self.starts)
        return self.state is State.HEAD and not self.held

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
