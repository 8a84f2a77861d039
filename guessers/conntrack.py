"""Chosen entries of the connection tracker, met through packets that belong to them, and where their facts lie."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from guessers.facts import exact
from guessers.memory import Copy, KernelMemory, ReadFault
from guessers.nfnetlink import Netfilter, Tuple
from guessers.pointers import SockSample, search_netns
from guessers.search import MACHINE, Encodings, Found, Sample, is_pointer, search
from guessers.tape import Reader
from kcompat.fields import CATALOGUE, Field, find

_WINDOW = 384  # struct nf_conn is 248 to 320 bytes; less where SLUB tells
_CONFIRMED, _SEEN_REPLY, _ASSURED, _FIXED_TIMEOUT = 8, 2, 4, 0x400
_CTINFO = 7  # the low bits of sk_buff._nfct since 4.12
# What only a tracked connection shows.
TRACKED = (*(f for f in CATALOGUE if f.module == "nf_conntrack"), find("_nfct"))
TUPLES = (find("tuplehash0.tuple"), find("tuplehash1.tuple"))
INNER = tuple(map(find, ("src.u3", "src.u", "src.l3num", "dst.u3", "dst.u", "dst.protonum")))
_UNIQUE = tuple(map(find, ("src.u3", "src.u", "dst.u3", "dst.u")))
_TUPLE_SIZE = TUPLES[0].width
_DIRECTION = replace(find("dst.protonum"), member="dst.dir")


@dataclass(frozen=True, slots=True)
class Entry:
    """A connection we had tracked. `begun` and `ended` are the seconds between which it was made."""

    original: Tuple
    reply: Tuple
    mark: int
    timeout_s: int | None
    """None where a packet may have set it anew."""
    begun: float
    ended: float


@dataclass(frozen=True, slots=True)
class Tracked:
    """The window of an entry's struct nf_conn, and what else tells about it."""

    sample: Sample
    address: int
    netns: int
    entry: Entry
    tossed: bool
    """Whether its family was chosen by the toss of a coin."""


class Tracker:
    """Has connections tracked in the namespace this thread is in now; all of it ends with the namespace."""

    def __init__(self, netfilter: Netfilter, memory: KernelMemory, rng: random.Random, netns: int) -> None:
        """Raises OSError where the kernel tracks nothing for us."""
        self._netfilter, self._memory, self._rng, self._netns = netfilter, memory, rng, netns
        netfilter.track()

    def insert(self, original: Tuple) -> tuple[Entry, int | None]:
        """Makes an entry with a reply that has nothing in common with it; and its address, if a hook tells it."""
        draw = self._rng
        ports = bool(original.source_port)
        head = len(original.source) - 3  # the same network: what a tracker would let pass
        reply = Tuple(original.family, original.protocol, original.source[:head] + draw.randbytes(3),
                      original.destination[:head] + draw.randbytes(3),
                      *((draw.randrange(1024, 65536), draw.randrange(1024, 65536)) if ports else ()))
        fixed = draw.random() < 0.7
        status = _CONFIRMED | draw.choice((0, _SEEN_REPLY)) | draw.choice((0, _ASSURED)) | _FIXED_TIMEOUT * fixed
        mark, timeout_s = draw.randrange(1 << 24, 1 << 31), draw.randrange(2000, 2_000_000)
        self._memory.clear()
        begun = time.monotonic()
        self._netfilter.insert(original, reply, mark=mark, status=status, timeout_s=timeout_s)
        ended = time.monotonic()
        named = [call.args[0] for call in self._memory.calls() if call.hook.object == "nf_conn"]
        return Entry(original, reply, mark, timeout_s if fixed else None, begun, ended), named[0] if named else None

    def look(self, entry: Entry, address: int, *, tossed: bool) -> Tracked | None:
        """The entry's object, with what the tracker said the same of before and after it was read."""
        try:
            before = self._netfilter.status_and_mark(entry.original)
            window = self._memory.read(address, _WINDOW)
            after = self._netfilter.status_and_mark(entry.original)
        except (OSError, ReadFault):
            return None
        known: dict[Field, Encodings] = {}
        if before[0] == after[0]:
            known[find("nf_conn.status")] = exact(before[0], 8)
        if before[1] == after[1] == entry.mark:
            known[find("nf_conn.mark")] = exact(entry.mark, 4)
        return Tracked(Sample(window, known, object_size(), "tracked connection"), address, self._netns, entry, tossed)

    def behind(self, packet: Copy, entry: Entry, lowest: int) -> int | None:
        """The entry's address by a packet that belongs to it: one of its pointers leads to all we chose."""
        told = (entry.original.source, entry.original.destination, entry.reply.source, entry.reply.destination)
        for at in range(0, len(packet.data) - 7, 8):
            address = int.from_bytes(packet.data[at:at + 8], "little") & ~_CTINFO
            if not is_pointer(address, lowest):
                continue
            with suppress(ReadFault):
                window = self._memory.read(address, _WINDOW)[:object_size()]
                if all(code in window for code in told):
                    return address
        return None


def nfct(address: int) -> Encodings:
    """All that a packet of this entry may hold: the pointer, and what the entry is to the packet in its low bits."""
    return tuple((address | info).to_bytes(8, "little") for info in range(_CTINFO + 1))


@cache
def object_size() -> int | None:
    """sizeof(struct nf_conn), where SLUB shows it."""
    with suppress(OSError, ValueError):
        return int(Path("/sys/kernel/slab/nf_conntrack/object_size").read_text())
    return None


def search_tuples(tracked: Sequence[Tracked]) -> list[Found]:
    """Both tuples in struct nf_conn and the members of a tuple.

    Addresses and ports are unique, of each direction. They show where each tuple lies, up to the four bytes between
    and behind them; in there lie the family, the protocol and the direction. Together they fill 40 bytes without a
    gap, so the first of them is where the tuple begins.
    """
    spans = [_span(tracked, direction) for direction in (0, 1)]
    if not tracked or None in spans:
        return _nothing(len(tracked))
    no_coin = not any(t.tossed for t in tracked)
    slices = [_slice(one, span, direction, tell_family=direction == 0 and (one.tossed or no_coin))
              for one in tracked for direction, span in enumerate(spans) if span]
    inner = {field: search(field, slices) for field in (*INNER, _DIRECTION)}
    places = _tiled({field: found.candidates for field, found in inner.items()})
    if places is None:
        return [replace(inner[f], candidates=()) for f in INNER] + _nothing(len(tracked))[:2]
    begin = min(places.values())
    evidence = {"method": "the seven members fill a tuple without a gap", "tiles": sorted(places.values())}
    starts = [_first(span[1]) + begin for span in spans if span]
    unique = [inner[f].evidence for f in _UNIQUE]
    of_tuple = {**unique[0], **evidence,
                "expected_false_positives": sum(e["expected_false_positives"] for e in unique)}
    members = [Found(f, (places[f] - begin,), {**inner[f].evidence, **evidence}) for f in INNER]
    return [*members,
            *(Found(field, (start,), of_tuple) for field, start in zip(TUPLES, starts, strict=True))]


def _nothing(samples: int) -> list[Found]:
    evidence = {"samples": samples, "distinct_values": samples, "expected_false_positives": 0.0, "null_survivors": 0}
    return [Found(field, (), evidence if samples else {"samples": 0}) for field in (*TUPLES, *INNER)]


def _values(one: Tuple) -> dict[Field, Encodings]:
    known: dict[Field, Encodings] = {
        find("src.u3"): (one.source.ljust(16, b"\0"),), find("dst.u3"): (one.destination.ljust(16, b"\0"),),
        find("dst.protonum"): exact(one.protocol, 1),
    }
    if one.source_port:
        known |= {find("src.u"): exact(one.source_port, 2, "big"),
                  find("dst.u"): exact(one.destination_port, 2, "big")}
    return known


def _span(tracked: Sequence[Tracked], direction: int) -> tuple[int, int] | None:
    """Where the unique members of a direction begin and end in struct nf_conn; None where any is not found once."""
    places = []
    for field in _UNIQUE:
        known = [Sample(t.sample.window, {field: v[field]}) for t in tracked
                 if field in (v := _values((t.entry.original, t.entry.reply)[direction]))]
        candidates = search(field, known).candidates
        if len(candidates) != 1:
            return None
        places.append((candidates[0], candidates[0] + field.width))
    begin, end = min(p for p, _ in places), max(p for _, p in places)
    return (begin, end) if end - begin <= _TUPLE_SIZE else None


def _slice(one: Tracked, span: tuple[int, int], direction: int, *, tell_family: bool) -> Sample:
    """Everything that can be in the tuple, the 40 bytes that hold the span in any way, aligned as the object is.

    The family is told once an entry: both its tuples have it, and it was tossed for once.
    """
    begin, end = span
    first = _first(end)
    window = bytes(max(0, -first)) + one.sample.window[max(0, first):begin + _TUPLE_SIZE]
    known = _values((one.entry.original, one.entry.reply)[direction]) | {_DIRECTION: exact(direction, 1)}
    if tell_family:
        known[find("src.l3num")] = exact(one.entry.original.family, 2)
    return Sample(window, known, None, one.sample.label)


def _first(end: int) -> int:
    """Where a tuple of which some member ends at `end` begins at the earliest."""
    return (end - _TUPLE_SIZE) & ~7


def _tiled(candidates: dict[Field, tuple[int, ...]]) -> dict[Field, int] | None:
    """The one way to place all members so that they fill a tuple without gap or overlap; None if there is not one."""
    ways: list[dict[Field, int]] = [{}]
    for field, places in candidates.items():
        ways = [way | {field: at} for way in ways for at in places
                if not any(at < o + f.width and o < at + field.width for f, o in way.items())]
    whole = [way for way in ways
             if max(at + f.width for f, at in way.items()) - min(way.values()) == _TUPLE_SIZE]
    return whole[0] if len(whole) == 1 else None


def search_owner(tracked: Sequence[Tracked], read: Reader, machine: str = MACHINE) -> Found:
    """``ct_net``: found as a sock's namespace is."""
    net, _ = search_netns([SockSample(t.sample, t.address, t.netns, 0) for t in tracked], read, machine)
    return Found(find("ct_net"), net.candidates, net.evidence)
