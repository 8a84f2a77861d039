"""Where the facts of tracked connections lie, over struct nf_conn made up in Python, in any order of its members."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guessers.conntrack import INNER, TUPLES, Entry, Tracked, Tracker, nfct, search_tuples
from guessers.hooks import HOOKS
from guessers.memory import Copy, ReadFault
from guessers.nfnetlink import Tuple
from guessers.search import Sample
from guessers.timeout import search_timeout
from guessers.verdicts import judge
from kcompat.fields import find
from kcompat.offsets import Verdict

SIZE, HZ = 320, 250
WIDTHS = {"src.u3": 16, "src.u": 2, "src.l3num": 2, "dst.u3": 16, "dst.u": 2, "dst.protonum": 1, "dst.dir": 1}
TRUE = {"src.u3": 0, "src.u": 16, "src.l3num": 18, "dst.u3": 20, "dst.u": 36, "dst.protonum": 38, "dst.dir": 39}
# Any order that leaves no gap and no member out of its alignment.
TURNED = {"dst.u": 0, "dst.protonum": 2, "dst.dir": 3, "dst.u3": 4, "src.u3": 20, "src.u": 36, "src.l3num": 38}
seeds = st.integers(0, 2**48)


def one_way(rng, family, protocol):
    length = 4 if family == 2 else 16
    ports = (rng.randrange(1024, 65536), rng.randrange(1024, 65536)) if protocol == 17 else (0, 0)
    return Tuple(family, protocol, rng.randbytes(length), rng.randbytes(length), *ports)


def members(one, direction):
    return {"src.u3": one.source.ljust(16, b"\0"), "dst.u3": one.destination.ljust(16, b"\0"),
            "src.u": one.source_port.to_bytes(2, "big"), "dst.u": one.destination_port.to_bytes(2, "big"),
            "src.l3num": one.family.to_bytes(2, "little"), "dst.protonum": bytes([one.protocol]),
            "dst.dir": bytes([direction])}


def tracked_world(seed, *, inner=TRUE, starts=(32, 88), timeout_at=8, count=18):
    """Connections of both families in any order, their objects full of noise but where we say."""
    rng = random.Random(seed)
    families = [2, 10] * (count // 2)
    rng.shuffle(families)
    jiffies, made = rng.getrandbits(32), []
    for number, family in enumerate(families):
        protocol = rng.choice((17, rng.randrange(148, 250)))
        begun = 50 + number * 0.01
        entry = Entry(one_way(rng, family, protocol), one_way(rng, family, protocol), rng.getrandbits(31),
                      rng.randrange(2000, 2_000_000), begun, begun + 0.002)
        window = bytearray(rng.randbytes(SIZE))
        ends = jiffies + round((begun - 50) * HZ) + entry.timeout_s * HZ
        window[timeout_at:timeout_at + 4] = (ends % 2**32).to_bytes(4, "little")
        for direction, (start, one) in enumerate(zip(starts, (entry.original, entry.reply), strict=True)):
            for name, code in members(one, direction).items():
                window[start + inner[name]:start + inner[name] + len(code)] = code
        made.append(Tracked(Sample(bytes(window), {}), 0xFFFF_8880_0000_0000 + number * 512, 7, entry, True))
    return made


def places(found):
    return {f.field: f.candidates for f in found}


@settings(max_examples=25)
@given(seeds, st.sampled_from([TRUE, TURNED]), st.sampled_from([(32, 88), (88, 32), (8, 200)]))
def test_tuples_and_their_members_come_out_whatever_their_order(seed, inner, starts):
    found = places(search_tuples(tracked_world(seed, inner=inner, starts=starts)))
    assert {f: found[f] for f in TUPLES} == {TUPLES[0]: (starts[0],), TUPLES[1]: (starts[1],)}
    assert {f.member: found[f] for f in INNER} == {f.member: (inner[f.member],) for f in INNER}


def test_a_gap_in_the_tuple_is_no_tuple():
    """Then a member is not where it seems to be, and where the tuple begins is anybody's guess."""
    gap = TRUE | {"dst.protonum": 39, "dst.dir": 40}
    assert set(places(search_tuples(tracked_world(1, inner=gap))).values()) == {()}


def test_one_entry_that_contradicts_ends_the_answer():
    world = tracked_world(2)
    world[5] = replace(world[5], sample=Sample(bytes(SIZE), {}))
    assert set(places(search_tuples(world)).values()) == {()}


def test_a_family_that_is_always_the_same_is_thin_evidence():
    found = {f.field: f for f in search_tuples([t for t in tracked_world(3) if t.entry.original.family == 2])}
    assert found[find("src.l3num")].evidence["expected_false_positives"] > 1
    assert found[find("src.u3")].evidence["expected_false_positives"] < 1e-3


@settings(max_examples=25)
@given(seeds, st.integers(0, 7).map(lambda n: n * 4))
def test_the_timeout_is_found_across_a_wrap_of_jiffies(seed, at):
    found = search_timeout(tracked_world(seed, timeout_at=at), HZ)
    assert found.candidates == (at,)
    assert found.evidence["null_survivors"] == 0
    assert found.evidence["expected_false_positives"] < 1e-9


def _later(one, at, number):
    window = bytearray(one.sample.window)
    expires = int.from_bytes(window[at:at + 4], "little") + (one.entry.timeout_s or 0) * HZ // 256 * (number % 3) // 2
    window[at:at + 4] = (expires & 0xFFFF_FFFF).to_bytes(4, "little")
    return bytes(window)


@settings(max_examples=10)
@given(seeds, st.sampled_from([(8, 16), (144, 24), (160, 16)]))
def test_a_timer_that_expires_then_is_no_timeout(seed, lies):
    """struct timer_list: two pointers, expires, then (from 4.2 on without base) function and data, the entry itself."""
    at, data = lies
    world = []
    for one in tracked_world(seed, timeout_at=at):
        window = bytearray(one.sample.window)
        window[at + 4:at + 8] = (1).to_bytes(4, "little")  # jiffies of 64 bits, five minutes after boot
        window[at + data:at + data + 8] = one.address.to_bytes(8, "little")
        world.append(replace(one, sample=Sample(bytes(window), {})))
    found = search_timeout(world, HZ)
    answer = judge([found], {"nf_conn": [t.sample for t in world]}, {})[find("nf_conn.timeout")]
    assert answer.verdict is Verdict.UNVERIFIED and answer.offset is None and answer.reason.endswith(f"stands at {at}")
    # Up to 4.7 it expires a little later than it was told to: by any part of 1/256 of its time.
    late = [replace(one, sample=Sample(_later(one, at, number), {})) for number, one in enumerate(world)]
    assert search_timeout(late, HZ).why == answer.reason
    # The address of another entry there is nobody's argument.
    other = replace(world[0], address=world[1].address)
    assert search_timeout([other, *world[1:]], HZ).candidates == (at,)


def test_another_rate_of_ticks_fits_no_place():
    assert search_timeout(tracked_world(4), 300).candidates == ()


def test_a_timeout_set_anew_by_a_packet_has_no_say():
    world = tracked_world(5)
    window = bytearray(world[3].sample.window)
    window[8:12] = bytes(4)
    world[3] = replace(world[3], sample=Sample(bytes(window), {}), entry=replace(world[3].entry, timeout_s=None))
    assert search_timeout(world, HZ).candidates == (8,)
    assert search_timeout([replace(world[3], entry=replace(world[3].entry, timeout_s=5000)), *world], HZ
                          ).candidates == ()


def test_without_entries_nothing_is_claimed():
    assert all(f.evidence["samples"] == 0 and not f.candidates for f in search_tuples([]))
    assert search_timeout([], HZ).evidence == {"samples": 0}


class Objects:
    def __init__(self, objects):
        self.objects = objects

    def read(self, address, size):
        if address not in self.objects:
            raise ReadFault(address, 14)
        return self.objects[address][:size]


@pytest.mark.parametrize("info", range(8))
def test_a_packet_leads_to_its_entry_whatever_the_low_bits_say(info):
    entry, other = (t.entry for t in tracked_world(6, count=2))
    first, second = (t for t in tracked_world(6, count=2))
    memory = Objects({t.address: t.sample.window for t in (first, second)})
    words = [0, second.address, 0xFFFF_8880_7777_0000, first.address | info]
    packet = Copy(HOOKS[0], 0, b"".join(w.to_bytes(8, "little") for w in words))
    tracker = Tracker.__new__(Tracker)
    tracker._memory = memory
    assert tracker.behind(packet, entry, 0xFFFF_8000_0000_0000) == first.address
    assert words[3].to_bytes(8, "little") in nfct(first.address)
    assert tracker.behind(packet, replace(other, reply=entry.reply), 0xFFFF_8000_0000_0000) is None
