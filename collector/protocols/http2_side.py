"""One direction of an HTTP/2 connection: where it is in its frames, and what its headers say."""

from __future__ import annotations

from enum import Enum, auto

from hpack import Decoder, HPACKError
from hpack.table import HeaderTable

from collector.protocols.http2_frames import Frame

# Of one message's headers, packed; what is longer is not looked into.
LONGEST_BLOCK = 1 << 16
LARGEST_TABLE = 1 << 16
UNKNOWN = b"\0unknown"

Headers = dict[bytes, bytes]


class _Table(HeaderTable):
    """Entries that came before what was seen are unknown, not wrong."""

    def get_by_index(self, index: int) -> tuple[bytes, bytes]:
        if index > self.STATIC_TABLE_LENGTH + len(self.dynamic_entries):
            return UNKNOWN, UNKNOWN
        return super().get_by_index(index)


class State(Enum):
    START = auto()
    HEAD = auto()
    BLOCK = auto()
    """In a frame whose bytes are headers."""
    SKIP = auto()
    """In any other."""
    LOST = auto()
    """It is not known where a frame begins: until a piece begins like one."""


class Side:
    """Where one direction is in its frames. Holds no more than one message's headers."""

    __slots__ = ("block", "decoder", "first", "first_ns", "frame", "frame_ns", "held", "left", "now_ns", "state")

    def __init__(self) -> None:
        self.state = State.START
        self.held = bytearray()
        self.left = self.now_ns = self.frame_ns = self.first_ns = 0
        self.frame = self.first = Frame(0, 0, 0, 0)
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
        self.state = State.LOST
        self.held.clear()
        self.block = None
        self.first = Frame(0, 0, 0, 0)
        self.forget()

    def unpack(self) -> Headers | None:
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
        headers: Headers = {}
        for name, value in found:
            twice = name in headers and name != b"cookie"
            headers[bytes(name)] = UNKNOWN if twice else bytes(value)
        return headers
