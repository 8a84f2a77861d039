"""What a translated connection is, and who may tell of one: ctnetlink, or the programs of nf_conn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from collector.addresses import V4_MAPPED
from kcompat.hook_status import HookStatus


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
    return V4_MAPPED + raw if len(raw) == 4 else raw


def translated(one: Translation) -> Translation | None:
    """None when the reply comes from the very destination that was asked for."""
    return None if one[3:5] == one[5:] else one


class Source(Protocol):
    """Who tells of translated connections: of each as it comes and goes, and of what was there before."""

    @property
    def how(self) -> str: ...

    @property
    def hooks(self) -> Sequence[HookStatus]: ...

    @property
    def namespaces(self) -> int:
        """How many are listened to one by one."""

    @property
    def refused(self) -> int: ...

    @property
    def lost(self) -> int: ...

    def wait(self, timeout_s: float) -> None:
        """Until there is something to hear, or the time is over."""

    def rescan(self) -> None:
        """Looks for what is new and makes good what was lost."""

    def drain(self) -> None:
        """Tells what was said until now."""

    def hear(self, netns: int, own: int) -> None:
        """Tells at least what was said until now of these two namespaces."""

    def settle(self) -> None:
        """Tells all that is known to the kernel by now."""

    def close(self) -> None: ...
