"""Recordings without the kernel's addresses: each has a pseudonym, and pointers still lead where they led."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from guessers.conntrack import INNER, TUPLES
from guessers.files import TABLE_SIZE, Files
from guessers.haul import Haul
from guessers.search import FOUR_LEVELS, Sample, is_pointer, lowest_pointer
from guessers.tape import Tape
from kcompat.fields import Field

_REGION = 21  # bits of an address that stay: objects, stacks and tables do not cross two megabytes
_START = 0x1000_0000_0000


class Pseudonyms:
    """Puts another address in the place of each of the kernel's, the same each time, as far from its neighbours.

    Two megabytes at a time are moved to where nobody can tell what was there: pointers stay equal to what they were
    equal to, lead as far into an object as they did, and say nothing about where the kernel lies.
    """

    def __init__(self, lowest: int, draw: Callable[[int], int] = secrets.randbelow) -> None:
        self._lowest = lowest
        self._draw = draw
        self._first = draw(1 << 20)
        self._regions: dict[int, int] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, int):
            return self.of(value)
        return b"".join(self.of(int.from_bytes(value[at:at + 8], "little")).to_bytes(8, "little")
                        if at + 8 <= len(value) else value[at:] for at in range(0, len(value), 8))

    def of(self, value: int) -> int:
        # Where addresses begin is no secret, and what has all bits set in its high half and a small number in its low
        # one is two numbers: addresses lie above and below.
        if not is_pointer(value, self._lowest + 1) or value == FOUR_LEVELS or value >> 31 == 0x1_FFFF_FFFE:
            return value
        region = value >> _REGION
        if region not in self._regions:
            # In order of appearance, twice as far apart as they are long, and moved by any number of pages.
            home = FOUR_LEVELS if value >= FOUR_LEVELS else self._lowest
            slot = self._first + len(self._regions)
            self._regions[region] = home + _START + (slot << _REGION + 1) + (self._draw(1 << _REGION - 12) << 12)
        return self._regions[region] + (value & (1 << _REGION) - 1)


def lowest_of(haul: Haul) -> int:
    """Where the addresses of its kernel begin."""
    witness = [s.address for s in haul.socks] + [p.address for p in haul.packets]
    return lowest_pointer(next(iter(witness), 0), haul.machine)


def told_apart(haul: Haul, places: Mapping[Field, int]) -> Haul:
    """The haul with what stands beside a number of ours blanked, where the two together look like an address.

    Ports before four bytes of an old stack, for one. Where a field lies is known by now: it is no part of an address.
    """
    lowest = lowest_of(haul)

    def clean(window: bytes, base: str) -> bytes:
        made = bytearray(window)
        ours = [range(at, at + f.width) for f, at in places.items() if f.base == base and f not in INNER
                and (f.width != 8 or f in TUPLES)]
        for at in {part.start // 8 * 8 for part in ours} | {(part.stop - 1) // 8 * 8 for part in ours}:
            if is_pointer(int.from_bytes(made[at:at + 8], "little"), lowest):
                for one in range(at, min(at + 8, len(made))):
                    if not any(one in part for part in ours):
                        made[one] = 0
        return bytes(made)

    def of(sample: Sample, base: str) -> Sample:
        return replace(sample, window=clean(sample.window, base))

    def of_table(tape: Tape) -> Tape:
        return Tape({(at, size): clean(data, "fdtable") if data and size == TABLE_SIZE else data
                     for (at, size), data in tape.held.items()})

    def of_files(files: Files) -> Files:
        walks = [replace(w, tables=[replace(t, tape=of_table(t.tape)) for t in w.tables]) for w in files.walks]
        return replace(files, walks=walks, tape=of_table(files.tape))

    return replace(
        haul, files=haul.files and of_files(haul.files),
        socks=[replace(s, sample=of(s.sample, "sock")) for s in haul.socks],
        flows={name: [of(s, name) for s in flows] for name, flows in haul.flows.items()},
        packets=[replace(p, sent=of(p.sent, "sk_buff"), waiting=clean(p.waiting, "sk_buff")) for p in haul.packets],
        tracked=[replace(t, sample=of(t.sample, "nf_conn")) for t in haul.tracked])
