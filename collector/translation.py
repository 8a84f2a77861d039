"""What a translated connection is, whoever tells of it: ctnetlink, or the programs of nf_conn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

_MAPPED = bytes(10) + b"\xff\xff"


class Translation(NamedTuple):
    """A tracked connection whose destination was translated; addresses are 16 bytes, v4-mapped for IPv4."""

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    real: bytes
    real_port: int


# Called with (netns, whether it ended, which).
Told = Callable[[int, bool, Translation], None]


def address(raw: bytes) -> bytes:
    """Of the 4 or 16 bytes of a packet, as everything here has it."""
    return _MAPPED + raw if len(raw) == 4 else raw


def translated(one: Translation) -> Translation | None:
    """None when the reply comes from the very destination that was asked for."""
    return None if one[3:5] == one[5:] else one
