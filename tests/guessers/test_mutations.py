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
from kcompat.fields import CATALOGUE
from kcompat.offsets import State
from tests.guessers import corpus
from tests.guessers.mutation import Shift, changed, moved

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
                 if offset != (shift.place(at[f], min(f.widths)) if f.base == field.base else at[f])}
        assert not wrong, f"{field} moved by {by}"
        followed |= {field} & now.keys()
    # A member that must be aligned to 8 is not looked for elsewhere; nor is one that would part what is one member.
    could = {f for f in at if by % min(alignment(f), 8) == 0}
    assert len(followed) > 0.6 * len(could), sorted(f.name for f in could - followed)


@settings(max_examples=80, deadline=None)
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
