"""The name a TLS client asks for (SNI), out of the first bytes it sends; also when they are cut off behind it."""

from __future__ import annotations

import re

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _HOST_NAME = 0, 0
_LARGEST_RECORD = (1 << 14) + 256
# What a hello may be long, over all its records, before it is not read on.
_LONGEST_HELLO = 1 << 16
# RFC 6066 3: letters, digits, hyphens; underscores are met with. No address: its last label is not all digits.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\.?\Z)(?:{_LABEL}\.)*(?!\d+\.?\Z){_LABEL}\.?\Z".encode())


def is_hello(data: bytes) -> bool:
    """Whether a connection that begins like this begins with a client's hello, as far as it goes."""
    return (len(data) >= 6 and data[0] == _HANDSHAKE and data[1] == 3 and data[2] <= 4
            and 4 <= int.from_bytes(data[3:5], "big") <= _LARGEST_RECORD and data[5] == _CLIENT_HELLO)


def server_name(data: bytes) -> str | None:
    """The name, in lower case; None where there is none, or none within these bytes. Raises nothing."""
    if not is_hello(data):
        return None
    hello = _Bytes(_joined(data))
    hello.skip(1)
    # Of a hello that goes on behind these bytes only what is there; nothing of what follows one.
    hello.only(hello.number(3))
    hello.skip(2 + 32)
    hello.skip(hello.number(1))  # session
    hello.skip(hello.number(2))  # ciphers
    hello.skip(hello.number(1))  # compressions
    hello.only(hello.number(2))
    while hello.left >= 4:
        kind, size = hello.number(2), hello.number(2)
        if kind == _SERVER_NAME:
            return _name(hello.take(size))
        hello.skip(size)
    return None


def _name(extension: bytes) -> str | None:
    names = _Bytes(extension)
    names.only(names.number(2))
    while names.left >= 3:
        kind, size = names.number(1), names.number(2)
        name = names.take(size)
        if kind == _HOST_NAME:
            # A name that is cut off is another name.
            return name.decode().rstrip(".").lower() if len(name) == size and _NAME.match(name) else None
    return None


def _joined(data: bytes) -> bytes:
    """What the records carry."""
    parts, at, size = [], 0, 0
    while at + 5 <= len(data) and data[at] == _HANDSHAKE and size < _LONGEST_HELLO:
        length = int.from_bytes(data[at + 3:at + 5], "big")
        if not 0 < length <= _LARGEST_RECORD:
            break
        parts.append(data[at + 5:at + 5 + length])
        at, size = at + 5 + length, size + length
    return b"".join(parts)


class _Bytes:
    """Read from the front; beyond the end there is nothing, and of a number's bytes those that lack are 0."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._end = data, 0, len(data)

    @property
    def left(self) -> int:
        return self._end - self._at

    def take(self, size: int) -> bytes:
        begin = self._at
        self.skip(size)
        return self._data[begin:self._at]

    def skip(self, size: int) -> None:
        self._at = min(self._at + size, self._end)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size).ljust(size, b"\0"), "big")

    def only(self, size: int) -> None:
        self._end = min(self._end, self._at + size)
