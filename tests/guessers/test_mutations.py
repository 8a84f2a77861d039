"""Recorded kernels with one thing changed: a field that moved is followed, and no wrong place is taken for sure."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guessers import guess
from guessers.conclusions import FOLLOWED, conclude
from guessers.guess import deduce, replay
from guessers.search import alignment
from kcompat.fields import CATALOGUE, find
from kcompat.offsets import State
from tests.guessers import corpus
from tests.guessers.mutation import Shift, Swaps, changed, moved, whole

LED = {find(name) for name in ("sk_buff.head", "msghdr.msg_name", "msghdr.msg_iter", "msghdr.msg_iter.iov")}
recording = cache(corpus.recording)


@cache
def truth(name):
    """The places of what the recording proves, as the judge tells them."""
    known = replay(recording(name)).offsets.known()
    return {f: at for f, at in corpus.answers(name).items() if f in known and at is not None}


PROVED = [(name, field) for name in corpus.NAMES for field in truth(name)]


def solved(one):
    """Field -> offset, of those the solver is sure of."""
    answers = deduce(CATALOGUE, conclude(one.haul), {})
    return {f: o.offset for f, o in answers.items() if o.state is State.KNOWN}


@pytest.mark.parametrize("by", [4, 8])
@pytest.mark.parametrize("name", corpus.NAMES)
def test_a_field_that_moved_is_followed_or_not_told(name, by):
    """All others that had to make room are found where they are now, too, or not told."""
    at, followed = truth(name), set()
    for field, place in at.items():
        shift = Shift(place, max(field.widths), by)
        now = solved(moved(recording(name), field.base, at, shift))
        wrong = {f.name: (offset, at.get(f)) for f, offset in now.items()
                 if offset != (shift.place(at[f], whole(f)) if f.base == field.base else at[f])}
        assert not wrong, f"{field} moved by {by}"
        followed |= {field} & now.keys()
    # A member that must be aligned to 8 is not looked for elsewhere; nor is one that would part what is one member.
    could = {f for f in at if by % min(alignment(f), 8) == 0}
    assert len(followed) > 0.6 * len(could), sorted(f.name for f in could - followed)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PROVED), st.randoms(use_true_random=False))
def test_whatever_changes_places_in_an_object_is_found_where_it_is_now(proved, rng):
    """As in kernels with shuffled structs, and worse: members do not stay in the struct they belong to."""
    name, field = proved
    at = truth(name)
    end = max(o + f.width for f, o in at.items() if f.base == field.base)
    widths = [w for w in rng.choices((2, 4, 8), k=rng.randrange(1, 6)) if 2 * w <= end]
    blocks = [(w, *rng.sample(range(end // w), 2)) for w in widths]
    swaps = Swaps([(a * w, b * w, w) for w, a, b in blocks])
    now = solved(moved(recording(name), field.base, at, swaps))
    wrong = {f.name: (offset, place) for f, offset in now.items()
             if (place := swaps.place(at[f], whole(f)) if f.base == field.base else at[f]) not in (offset, None)}
    assert not wrong


@pytest.mark.parametrize("name", corpus.NAMES)
def test_what_is_gone_is_not_found_elsewhere(name):
    """Kernel memory is full of look-alikes; what is proved by a recorded look along a pointer does not go away."""
    at = truth(name)
    for field in at.keys() - LED:
        def wiped(window, base=0, begin=at[field], width=field.width):
            return put(window, base + begin, bytes(width))

        now = solved(replace(recording(name), haul=changed(recording(name).haul, field.base, at, wiped)))
        assert field not in now, field
        assert {f.name: (o, at.get(f)) for f, o in now.items() if o != at.get(f)} == {}, field


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(corpus.NAMES), st.randoms(use_true_random=False), st.sampled_from((1, 2, 3, 5, 9, 20)))
def test_with_a_few_of_the_samples_there_are_fewer_answers_and_no_wrong_ones(name, rng, count):
    haul, at = recording(name).haul, truth(name)

    def some(samples):
        return rng.sample(samples, min(count, len(samples)))

    few = replace(haul, socks=some(haul.socks), flows={n: some(flows) for n, flows in haul.flows.items()},
                  packets=some(haul.packets), tracked=some(haul.tracked))
    if few.files:
        few.files = replace(few.files, walks=few.files.walks[:count], ends=some(few.files.ends))
    assert {f.name: (o, at.get(f)) for f, o in solved(replace(recording(name), haul=few)).items()
            if o != at.get(f)} == {}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PROVED), st.integers(0, 10**6), st.binary(min_size=40, max_size=40))
def test_one_sample_that_lies_takes_verdicts_away_and_never_changes_them(proved, which, noise):
    name, field = proved
    at = truth(name)
    now = solved(forged(recording(name), field, at, lambda window, number, count: put(
        window, at[field], noise[:field.width]) if number == which % count else window))
    assert {f.name: (o, at.get(f)) for f, o in now.items() if o != at.get(f)} == {}


def a_place_that_is_right_but_once_is_not_taken(name, field, once):
    """The field itself is wiped out, and stands elsewhere in all samples but the `once`-th of those that know it."""
    at = truth(name)
    samples = [s for s in conclude(recording(name).haul).samples[field.base] if field in s.values]
    end = min(s.end for s in samples)
    taken = [(o, o + max(f.widths)) for f, o in at.items() if f.base == field.base]
    decoy = next((o for o in range(at[field] + 8, end - field.width - 8, 8)
                  if all(o + field.width <= a or b <= o for a, b in taken)), None)
    if decoy is None:
        return
    telling = {id(s.window): number for number, s in enumerate(samples)}

    def forge(window, number, count):
        value = window[at[field]:at[field] + field.width]
        if telling.get(id(window), -1) == once % len(samples):
            value = bytes(b ^ 0x5A for b in value)
        return put(put(window, decoy, value), at[field], bytes(field.width))

    now = solved(forged(recording(name), field, at, forge))
    assert now.get(field) is None


SOLVED = [(name, field) for name, field in PROVED
          if field not in FOLLOWED and field.base in ("sock", "flowi4", "flowi6")]


@pytest.mark.parametrize("once", [0, 3, 6])  # the fourth of four is held out of the search
def test_a_place_that_is_right_in_all_samples_but_one_is_no_answer(once):
    for name, field in SOLVED:
        a_place_that_is_right_but_once_is_not_taken(name, field, once)


def test_without_the_samples_held_out_the_test_above_would_fail(monkeypatch):
    """So it can fail: a solver that looks at no more than it searches in takes the forgery."""
    search = guess.search

    def careless(field, samples):
        knowing = [s for s in samples if field in s.values]
        return search(field, [s for number, s in enumerate(knowing) if number % 4 != 3])

    monkeypatch.setattr(guess, "search", careless)
    with pytest.raises(AssertionError):
        test_a_place_that_is_right_in_all_samples_but_one_is_no_answer(3)


def forged(one, field, at, forge):
    """`forge(window, number, count)` over all windows the field is looked for in, and how many there are."""
    windows = []
    changed(one.haul, field.base, at, lambda window, base=0: windows.append(window) or window)
    numbers = iter(range(len(windows)))
    return replace(one, haul=changed(one.haul, field.base, at, lambda window, base=0: forge(
        window, next(numbers), len(windows))))


def put(window, at, value):
    return window[:at] + value[:max(0, len(window) - at)] + window[at + len(value):]
