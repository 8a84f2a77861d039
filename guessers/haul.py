"""Everything a guess saw: its experiments put it in here, and all that is concluded is concluded from here."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dc_field

from guessers.conntrack import Tracked
from guessers.files import Files
from guessers.messages import Messages
from guessers.pointers import SockSample
from guessers.search import MACHINE, Sample
from guessers.skbuff import Packet
from guessers.tape import Followed
from guessers.timeout import ticks_per_second
from kcompat.fields import Field


@dataclass(slots=True)
class Haul:
    """Everything one run collected. It holds no conclusion, so that each can be drawn again."""

    socks: list[SockSample] = dc_field(default_factory=list)
    flows: dict[str, list[Sample]] = dc_field(default_factory=lambda: {"flowi4": [], "flowi6": []})
    packets: list[Packet] = dc_field(default_factory=list)
    tracked: list[Tracked] = dc_field(default_factory=list)
    files: Files | None = None
    messages: Messages | None = None
    followed: dict[str, Followed] = dc_field(default_factory=dict)
    """What was read for each search that follows pointers, by its name: see conclusions.py."""
    missed: dict[str, int] = dc_field(default_factory=dict)
    obstacles: dict[Field, str] = dc_field(default_factory=dict)
    """Why nothing could be seen of a field."""
    connections: int = 0
    machine: str = MACHINE
    hz: int = dc_field(default_factory=ticks_per_second)

    def miss(self, why: str) -> None:
        self.missed[why] = self.missed.get(why, 0) + 1
