"""The pure solver: from windows of memory and the values known to be in them, to one offset, several, or none."""

from __future__ import annotations

import itertools
import platform
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dc_field
from math import exp, lgamma
from typing import Any, TypeVar

from kcompat.fields import Field

T = TypeVar("T")
# A value and all the encodings it may have in memory: srtt_us of a TCP_INFO rtt of 57 is one of eight numbers.
Encodings = tuple[bytes, ...]

FOUR_LEVELS = 0xFFFF_8000_0000_0000
_ERRORS = 0xFFFF_FFFF_FFFF_F000  # from here on it is no address but an error number: IS_ERR()
MACHINE = platform.machine()
HOLD_OUT = 4  # every fourth sample is kept back from the search and used only to check its answer
_STARTS = 6  # values the search may begin with: the rarest of them leaves least to check
_VALUES, _ALIKE = 12, 8  # enough values, and samples of a value, to measure how common it is
# Fields whose value was chosen by the toss of a coin for every sample, whatever else the sample is.
TOSSED = frozenset({"skc_bound_dev_if", "flowi_oif", "protocol", "src.l3num"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One object's memory, cut at `limit`, its size, where that is known; and what we know stands in it."""

    window: bytes
    values: Mapping[Field, Encodings]
    limit: int | None = None
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", self.window[:self.limit or None])

    @property
    def end(self) -> int:
        return len(self.window)


Knowing = tuple[Sample, Encodings]  # a sample and what it knows of the field in question


@dataclass(frozen=True, slots=True)
class Found:
    """What the samples say of one field: every offset at which all of them agree."""

    field: Field
    candidates: tuple[int, ...]
    evidence: Mapping[str, Any] = dc_field(default_factory=dict)
    why: str | None = None
    """Why there is none, where that is more than that no place agrees."""


def alignment(field: Field) -> int:
    """What the compiler aligns the field to: its size, but 4 for addresses, and 1 where it may be a bitfield."""
    return min(field.widths) if field.width <= 8 else 4


def hits(sample: Sample, encodings: Encodings, step: int) -> set[int]:
    """Every aligned offset at which one of the encodings stands inside the object."""
    found = set()
    for code in encodings:
        at = sample.window.find(code)
        while at >= 0:
            if at % step == 0:
                found.add(at)
            at = sample.window.find(code, at + 1)
    return found


def stands(sample: Sample, encodings: Encodings, offset: int) -> bool:
    """Whether one of the encodings stands at `offset`, inside the object."""
    return sample.window.startswith(encodings, offset)


def search(field: Field, samples: Iterable[Sample]) -> Found:
    """All offsets at which every sample that knows the field holds its value, and why to believe it.

    No vote is taken: one sample that contradicts an offset ends it. Samples held out of the search must agree too;
    they are what shows that the search did not fit noise.
    """
    known = [(s, s.values[field]) for s in samples if field in s.values]
    step = alignment(field)
    if not known:
        return Found(field, (), {"samples": 0})
    train = [pair for i, pair in enumerate(known) if i % HOLD_OUT != HOLD_OUT - 1]
    held = known[HOLD_OUT - 1::HOLD_OUT]
    distinct = {codes: s for s, codes in train}
    survivors = min((hits(s, codes, step) for codes, s in list(distinct.items())[:_STARTS]), key=len)
    trail = [len(survivors)]
    for sample, codes in train:
        survivors = {o for o in survivors if stands(sample, codes, o)}
        trail.append(len(survivors))
    verified = {o for o in survivors if all(stands(s, codes, o) for s, codes in held)}
    evidence = {
        "samples": len(known),
        "held_out": len(held),
        "distinct_values": len({codes for _, codes in known}),
        "candidates_by_sample": trail,
        "refuted_by_held_out": sorted(survivors - verified),
        "expected_false_positives": expected_false_positives(field, known),
        "null_survivors": null_survivors(known, step),
    }
    return Found(field, tuple(sorted(verified)), evidence, None if verified else _nearly(known, step))


def _nearly(known: Sequence[Knowing], step: int) -> str | None:
    """Who stands against the place that most samples agree on, where most do: one that lies, not a field that is not.

    It is told and changes nothing: no vote is taken.
    """
    votes = Counter(at for sample, codes in known for at in hits(sample, codes, step))
    at, agreeing = max(votes.items(), key=lambda vote: vote[1], default=(0, 0))
    if agreeing <= len(known) / 2:
        return None
    against = ", ".join(sorted({s.label or "unnamed" for s, codes in known if not stands(s, codes, at)}))
    return f"no place agrees with all {len(known)} samples: {at} does with {agreeing}, and not with {against}"


def expected_false_positives(field: Field, known: Sequence[Knowing]) -> float:
    """How many offsets would pass by chance.

    The chance of each value is measured, not assumed: at how many places do the samples that have it all show it? That
    is honest for small numbers, which memory is full of, and for samples with the same value, which are not
    independent: a place that holds it once tends to hold it again, and counts once.
    """
    step = alignment(field)
    places = sum(max(1, s.end // step) for s, _ in known) / len(known)
    by_value: dict[Encodings, list[Sample]] = {}
    for sample, codes in known:
        by_value.setdefault(codes, []).append(sample)
    chance = 1.0
    for codes, group in itertools.islice(by_value.items(), _VALUES):
        some = group[::max(1, len(group) // _ALIKE)][:_ALIKE]
        chance *= min(1.0, (len(_agreeing(some, codes, step)) + 0.5) / places)
    if field.member in TOSSED:
        chance = min(chance, chance_of_pattern([codes for _, codes in known]))
    return places * (chance if len(by_value) > 1 else 1.0)


def _agreeing(samples: Sequence[Sample], codes: Encodings, step: int) -> set[int]:
    """The offsets at which all of the samples show the value."""
    survivors = hits(samples[0], codes, step)
    for sample in samples[1:]:
        survivors = {o for o in survivors if stands(sample, codes, o)}
    return survivors


def chance_of_pattern(values: Sequence[Hashable]) -> float:
    """The chance that a place which has nothing to do with the coin shows just this sequence of heads and tails."""
    orders = lgamma(len(values) + 1) - sum(lgamma(values.count(v) + 1) for v in set(values))
    return exp(-orders)


def by_chance(tried: int, passed: int, samples: int, words: int) -> float:
    """How many of the pointers `tried` would lead, in so many samples, to just our object's address by accident.

    Measured as in `expected_false_positives`: `passed` of them, the true one among them, pass the first sample. Of a
    few pointers that says little; but then the address of an object is one of 2^24 at the least, in a gigabyte of
    cache lines, and as many `words` are looked at behind each pointer.
    """
    return tried * min((passed + 0.5) / tried, words * 2.0**-24) ** samples if tried else 0.0


def null_survivors(known: Sequence[Knowing], step: int) -> int:
    """How many offsets pass when every sample is given another one's value: a sound search leaves none.

    -1 when the values do not differ enough to be exchanged.
    """
    values = [codes for _, codes in known]
    if len(set(values)) < 2:
        return -1
    pairs = [(s, v) for (s, own), v in zip(known, _derangement(values), strict=True) if v != own]
    survivors = min((hits(sample, codes, step) for sample, codes in pairs[:_STARTS]), key=len)
    for sample, codes in pairs:
        survivors = {o for o in survivors if stands(sample, codes, o)}
    return len(survivors)


def _derangement(values: Sequence[Encodings]) -> list[Encodings]:
    """The same values, rotated so that as many as possible land on a sample with another value."""
    turns = range(1, min(len(values), 12))
    moved = [sum(a != b for a, b in zip(values, _rotated(values, by), strict=True)) for by in turns]
    return _rotated(values, turns[moved.index(max(moved))])


def _rotated(values: Sequence[Encodings], by: int) -> list[Encodings]:
    return [*values[by:], *values[:by]]


def exchanged(values: Sequence[T]) -> list[T]:
    """Each one's value given to its neighbour: what a null asks for."""
    return [*values[1:], *values[:1]]


def pointers(windows: Sequence[bytes], end: int, lowest: int) -> Iterator[int]:
    """Offsets at which every window holds something that can be a kernel pointer, at a place aligned for one."""
    for at in range(0, min([end, *map(len, windows)]) - 7, 8):
        if all(is_pointer(int.from_bytes(w[at:at + 8], "little"), lowest) for w in windows):
            yield at


def is_pointer(value: int, lowest: int) -> bool:
    """Whether a 64-bit value lies in the kernel's part of the address space, small negative numbers aside."""
    return lowest <= value < _ERRORS


def is_object(value: int, lowest: int) -> bool:
    """Whether it can be the address of something allocated, or on a stack: those are aligned for a pointer."""
    return is_pointer(value, lowest) and value % 8 == 0


def lowest_pointer(witness: int, machine: str = MACHINE) -> int:
    """Where the kernel's addresses begin, told by one of them.

    Exact where it matters: x86 faults in another way on addresses that no page table can map (not canonical), and
    5.3 to 5.15 write a warning with a backtrace to the log when a probe reads one. Four levels of page tables begin at
    ffff8000..., five at ff000000...; a sock of a kernel with five lies at ff11... or above, below that of four.
    arm64 has 52 bits at most.
    """
    if machine == "aarch64":
        return 0xFFF0_0000_0000_0000
    return FOUR_LEVELS if machine == "x86_64" and witness >= FOUR_LEVELS else 0xFF00_0000_0000_0000
