import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from guessers.search import Found, Sample, search
from guessers.verdicts import clashes, fitting, judge, peaceful, settle
from kcompat.fields import find
from kcompat.offsets import State, Verdict
from tests.guessers.synthetic import (
    IMPERFECT,
    SOCK_FIELDS,
    copy,
    free_place,
    random_layout,
    sock_world,
    tells,
)

SURE = {"samples": 9, "expected_false_positives": 0.0, "null_survivors": 0}
seeds = st.integers(0, 2**48)


def verdicts(world, fields=SOCK_FIELDS):
    return judge([search(f, world.samples["sock"]) for f in fields], world.samples, {})


def wrong(world, answers):
    """The fields answered with another place than their own."""
    return {f.name: (o.offset, world.layout.get(f)) for f, o in answers.items()
            if o.state is State.KNOWN and o.offset != world.layout.get(f)}


def test_no_wrong_unique_answer(capsys):
    """Decoys of every kind; a field in ten is not in the window at all. A decoy differs from the field in a sample."""
    seen = Counter()

    @settings(max_examples=60, deadline=None)
    @given(seeds)
    def world_by_world(seed):
        rng = random.Random(seed)
        absent = set(rng.sample(SOCK_FIELDS, rng.randrange(5)))
        layout = random_layout(rng, absent=absent)
        taken, decoys = dict(layout), []
        for member in rng.choices(SOCK_FIELDS, k=rng.randrange(40)):
            if (at := free_place(rng, member, taken)) is not None:
                taken[len(taken)] = at
                decoys.append((member, at, rng.choice(IMPERFECT)))
        world = sock_world(rng, layout, decoys, per_kind=rng.randrange(2, 6))
        # What equals an absent field in every sample (a byte-swapped inet_sport is skc_num) is that field to anybody.
        if not all(tells(world, f, at) for forged, at, _ in decoys for f in {forged, *absent}):
            return
        answers = verdicts(world)
        assert not wrong(world, answers)
        seen.update(o.verdict for f, o in answers.items() if f in layout)
        seen["absent or beyond the end"] += len(absent)

    world_by_world()
    present = sum(seen[v] for v in Verdict)
    with capsys.disabled():
        print(f"\n{present} fields with decoys: {seen[Verdict.OK] / present:.2%} ok, "
              f"{seen[Verdict.AMBIGUOUS] / present:.2%} ambiguous, {seen[Verdict.UNVERIFIED] / present:.2%} unverified; "
              f"{seen['absent or beyond the end']} absent, 0 wrong")
    assert seen[Verdict.OK] / present > 0.9
