"""Recordings without the kernel's addresses: each has a pseudonym, and pointers still lead where they led."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from guessers.conntrack import INNER, TUPLES
from guessers.files import TABLE_SIZE, Files
from guessers.haul import Haul
from guessers.search import FOUR_LEVELS, Sample, is_pointer, lowest_pointer
from guessers.skbuff import Packet, headers_of
from guessers.tape import Tape
from kcompat.fields import Field

_REGION = 21  # bits of an address that stay: objects, stacks and tables do not cross two megabytes
_START = 0x1000_0000_0000


class Pseudonyms:
    """Puts another address in the place of each of the kernel's, the same each time, as far from its neighbours.

    Two megabytes at a time are moved to where nobody can tell what was there: pointers stay equal to what they were
    equal to, lead as far into an object as they did, and say nothing about where the kernel lies. The numbers `ours`
    are no addresses, whatever they look like.
    """

    def __init__(self, lowest: int, draw: Callable[[int], int] = secrets.randbelow,
                 ours: Collection[int] = frozenset()) -> None:
        self._lowest = lowest
        self._ours = ours
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
        if (not is_pointer(value, self._lowest + 1) or value == FOUR_LEVELS or value >> 31 == 0x1_FFFF_FFFE
                or value in self._ours):
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


def told_apart(haul: Haul, places: Mapping[Field, int]) -> tuple[Haul, set[int]]:
    """The haul with what stands beside a number of ours blanked, where the two together look like an address.

    Ports before four bytes of an old stack, for one. Where a field lies is known by now: it is no part of an address.
    And the words that look like one although all of them is ours: of five levels of page tables, every word that ends
    in ff does.
    """
    lowest, kept = lowest_of(haul), set(_long_numbers(haul))

    def apart(window: bytes, parts: Iterable[range]) -> bytes:
        made, parts = bytearray(window), tuple(parts)
        for at in {one // 8 * 8 for part in parts for one in range(part.start, part.stop + 7, 8)}:
            word = range(at, min(at + 8, len(made)))
            if is_pointer(int.from_bytes(made[at:at + 8], "little"), lowest) and any(
                    at < part.stop and part.start < at + 8 for part in parts):
                for one in word:
                    if not any(one in part for part in parts):
                        made[one] = 0
                kept.add(int.from_bytes(made[at:at + 8], "little"))
        return bytes(made)

    def clean(window: bytes, base: str) -> bytes:
        return apart(window, (range(at, at + f.width) for f, at in places.items() if f.base == base and f not in INNER
                              and (f.width != 8 or f in TUPLES)))

    def of(sample: Sample, base: str) -> Sample:
        return replace(sample, window=clean(sample.window, base))

    def of_table(tape: Tape) -> Tape:
        return Tape({(at, size): clean(data, "fdtable") if data and size == TABLE_SIZE else data
                     for (at, size), data in tape.held.items()})

    def of_files(files: Files) -> Files:
        walks = [replace(w, tables=[replace(t, tape=of_table(t.tape)) for t in w.tables]) for w in files.walks]
        return replace(files, walks=walks, tape=of_table(files.tape))

    def of_packet(packet: Packet) -> Packet:
        return replace(packet, sent=of(packet.sent, "sk_buff"), waiting=clean(packet.waiting, "sk_buff"),
                       behind=tuple((at, apart(buffer, headers_of(packet, buffer))) for at, buffer in packet.behind))

    return replace(
        haul, files=haul.files and of_files(haul.files),
        socks=[replace(s, sample=of(s.sample, "sock")) for s in haul.socks],
        flows={name: [of(s, name) for s in flows] for name, flows in haul.flows.items()},
        packets=[of_packet(p) for p in haul.packets],
        tracked=[replace(t, sample=of(t.sample, "nf_conn")) for t in haul.tracked]), kept


def _long_numbers(haul: Haul) -> Iterator[int]:
    """The words of IPv6 addresses that we chose, as they stand where nothing is before them."""
    samples = [s.sample for s in haul.socks] + [s for flows in haul.flows.values() for s in flows]
    codes = [code for s in samples for encodings in s.values.values() for code in encodings]
    for wire in [p.wire for p in haul.packets if p.wire] + [t for one in haul.tracked
                                                            for t in (one.entry.original, one.entry.reply)]:
        codes += [wire.source, wire.destination]
    for code in codes:
        if len(code) == 16:
            yield from (int.from_bytes(code[at:at + 8], "little") for at in (0, 8))
