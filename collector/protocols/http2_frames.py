"""Frames of HTTP/2 (RFC 9113 4 and 6): the nine bytes that each begins with, and whether they make sense."""

from __future__ import annotations

import struct
from typing import NamedTuple

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
BLOCKS = frozenset((HEADERS, PUSH_PROMISE, CONTINUATION))
REQUESTS = frozenset((DATA, HEADERS, CONTINUATION))
END_STREAM, END_HEADERS, PADDED, PRIORITIZED = 0x01, 0x04, 0x08, 0x20
HEAD = struct.Struct("!BHBBI")

_OF_CONNECTION = frozenset((SETTINGS, PING, GOAWAY))
_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW: 4}
# The flags each type of frame has (RFC 9113 6).
_FLAGS = {DATA: 0x09, HEADERS: 0x2D, SETTINGS: 0x01, PUSH_PROMISE: 0x0C, PING: 0x01, CONTINUATION: 0x04}


class Frame(NamedTuple):
    size: int
    type: int
    flags: int
    stream: int

    @classmethod
    def of(cls, head: bytes) -> Frame:
        high, low, what, flags, stream = HEAD.unpack(head)
        return cls(high << 16 | low, what, flags, stream & 0x7FFF_FFFF)

    @property
    def is_sound(self) -> bool:
        """Whether frames of this type look like that; of a type that is not known, it may."""
        if self.type > CONTINUATION:
            return True
        if self.type != WINDOW and (self.stream == 0) != (self.type in _OF_CONNECTION):
            return False
        if self.type == SETTINGS and self.size % 6:
            return False
        return self.size == _SIZES.get(self.type, self.size)

    @property
    def is_sure(self) -> bool:
        """Whether nothing else is likely to look like that: bytes from the middle of something are not taken for it."""
        return (self.type <= CONTINUATION and self.is_sound and self.size < 1 << 16
                and not self.flags & ~_FLAGS.get(self.type, 0) and self.type not in (DATA, CONTINUATION))
