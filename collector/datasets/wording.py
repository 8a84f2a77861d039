"""What the kernel's maps have in bytes and numbers, in words: shared by the datasets of connections."""

from __future__ import annotations

from functools import lru_cache

WAYS = ("outgoing", "incoming", "outgoing")
"""By the `direction` of a state; 0, of one whose beginning was not seen, is a guess."""


@lru_cache(maxsize=4096)
def text(comm: bytes) -> str:
    """Of a ``char[16]``, what is before the NUL."""
    return comm.partition(b"\0")[0].decode(errors="replace")
