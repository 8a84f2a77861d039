import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guessers.search import (
    Sample,
    alignment,
    expected_false_positives,
    hits,
    is_pointer,
    lowest_pointer,
    pointers,
    search,
    stands,
)
from kcompat.fields import find

MARK, PORT, RTT, STATE = find("sk_mark"), find("skc_dport"), find("srtt_us"), find("skc_state")
# Few byte values make accidents common: a search must be exact where values collide.
windows = st.lists(st.lists(st.integers(0, 2), min_size=24, max_size=24).map(bytes), min_size=1, max_size=6)


def planted(offset, count=12, seed=1, field=MARK, size=512):
    """Samples whose windows are random bytes with a random value of the field at `offset`."""
    rng = random.Random(seed)
    samples = []
    for _ in range(count):
        window, code = bytearray(rng.randbytes(size)), rng.randbytes(field.width)
        window[offset:offset + len(code)] = code
        samples.append(Sample(bytes(window), {field: (code,)}))
    return samples


@given(windows, st.sampled_from([MARK, PORT, STATE]), st.integers(0, 24), st.data())
def test_candidates_are_what_trying_every_offset_gives(memory, field, limit, data):
    code = st.lists(st.integers(0, 2), min_size=field.width, max_size=field.width).map(bytes)
    codes = [data.draw(code) for _ in memory]
    samples = [Sample(window, {field: (code,)}, limit or None) for window, code in zip(memory, codes, strict=True)]
    end = limit or 24
    everywhere = tuple(o for o in range(0, end - field.width + 1, alignment(field))
                       if all(w[o:o + field.width] == c for w, c in zip(memory, codes, strict=True)))
    assert search(field, samples).candidates == everywhere


@given(st.integers(0, 120).map(lambda n: 4 * n), st.integers(0, 2**32))
def test_moving_the_field_by_four_moves_the_answer(offset, seed):
    here, there = planted(offset, seed=seed), planted(offset + 4, seed=seed)
    assert search(MARK, here).candidates == (offset,)
    assert search(MARK, there).candidates == (offset + 4,)


def test_one_sample_that_contradicts_ends_an_offset_wherever_it_is_in_the_order():
    for spoiled in range(12):
        samples = planted(40)
        samples[spoiled] = Sample(bytes(512), samples[spoiled].values, label="IPv6 raw")
        found = search(MARK, samples)
        assert found.candidates == ()
        assert found.why == "no place agrees with all 12 samples: 40 does with 11, and not with IPv6 raw"


def test_of_what_stands_nowhere_no_place_is_named():
    assert search(MARK, [Sample(bytes(512), sample.values) for sample in planted(40)]).why is None


def test_held_out_samples_refute():
    samples = planted(40, count=8)
    samples[3] = Sample(bytes(512), samples[3].values)  # every fourth is held out
    evidence = search(MARK, samples).evidence
    assert evidence["held_out"] == 2
    assert evidence["refuted_by_held_out"] == [40]


def test_nothing_is_found_behind_the_end_of_the_object():
    samples = [Sample(s.window, s.values, 40) for s in planted(40)]
    assert search(MARK, samples).candidates == ()
    across = [Sample(s.window, s.values, 42) for s in planted(40)]
    assert search(MARK, across).candidates == ()


def test_any_encoding_of_a_shifted_value_will_do():
    sample = Sample(bytes(8) + (57 << 3 | 5).to_bytes(4, "little"), {})
    codes = tuple((57 << 3 | low).to_bytes(4, "little") for low in range(8))
    assert hits(sample, codes, 4) == {8}
    assert stands(sample, codes, 8)
    assert not stands(sample, codes, 4)


def test_samples_that_do_not_know_the_field_have_no_say():
    assert search(MARK, [*planted(40), Sample(bytes(512), {})]).candidates == (40,)


def test_a_value_that_never_differs_proves_nothing():
    samples = [Sample(random.Random(n).randbytes(512)[:40] + bytes(472), {MARK: (bytes(4),)}) for n in range(20)]
    found = search(MARK, samples)
    assert found.evidence["expected_false_positives"] > 1
    assert found.evidence["null_survivors"] == -1


def chance(samples):
    return expected_false_positives(MARK, [(s, s.values[MARK]) for s in samples])


def test_small_numbers_are_weighed_by_how_common_they_are():
    rng = random.Random(3)
    flags = b"".join(rng.choice((0, 0, 1, 2)).to_bytes(4, "little") for _ in range(128))
    small = [Sample(flags, {MARK: (rng.choice((0, 1)).to_bytes(4, "little"),)}) for _ in range(12)]
    assert chance(small) > 1
    assert chance(planted(40)) < 1e-6


def test_a_place_that_agrees_with_exchanged_values_too_is_reported():
    """Both values stand at one place as encodings of a flag would: it says nothing about the field."""
    codes = [bytes([n % 2, 0, 0, 0]) for n in range(12)]
    samples = [Sample(bytes(40) + code + codes[(n + 1) % 12], {MARK: (code,)}) for n, code in enumerate(codes)]
    assert search(MARK, samples).evidence["null_survivors"] >= 1


def test_without_samples_nothing_is_claimed():
    assert search(MARK, []).candidates == ()
    assert search(MARK, []).evidence == {"samples": 0}


@pytest.mark.parametrize(("witness", "machine", "value", "answer"), [
    (0xFFFF_8880_0123_4000, "x86_64", 0xFFFF_8881_0000_0000, True),
    (0xFFFF_8880_0123_4000, "x86_64", 0xFFFF_FFFF_8123_0000, True),
    # Not canonical with four levels of page tables: 5.10 writes a warning with a backtrace when it is read.
    (0xFFFF_8880_0123_4000, "x86_64", 0xFFFF_0006_0001_0AF0, False),
    (0xFF11_0000_0123_4000, "x86_64", 0xFF11_0000_0000_1000, True),
    (0xFFFF_8000_1234_0000, "aarch64", 0xFFFF_0000_0808_0000, True),
    (0xFFFF_8880_0123_4000, "x86_64", 0xFFFF_FFFF_FFFF_FFEA, False),
    (0xFFFF_8880_0123_4000, "x86_64", 0x0000_7FFF_0000_0000, False),
    (0xFFFF_8880_0123_4000, "x86_64", 0, False),
])
def test_what_can_be_a_kernel_pointer(witness, machine, value, answer):
    assert is_pointer(value, lowest_pointer(witness, machine)) is answer


def test_pointers_stand_in_every_window_inside_the_object():
    good, bad = (0xFFFF_8880_0000_1000).to_bytes(8, "little"), bytes(8)
    assert list(pointers([good + bad + good, good + good + good], 24, 0xFFFF_8000_0000_0000)) == [0, 16]
    assert list(pointers([good * 3], 23, 0xFFFF_8000_0000_0000)) == [0, 8]
