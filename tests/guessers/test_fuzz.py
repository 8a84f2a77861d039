"""As many random layouts as one has time for: a unique answer is never a wrong one (KCOMPAT_LAYOUTS, `make fuzz`)."""

import os
import random
import sys
from collections import Counter

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from guessers.search import search
from guessers.verdicts import judge
from kcompat.offsets import State, Verdict
from tests.guessers.synthetic import IMPERFECT, SOCK_FIELDS, copy, free_place, random_layout, sock_world, tells

LAYOUTS = int(os.environ.get("KCOMPAT_LAYOUTS", "300"))
SIZE = 1024


def decoys_of(rng, layout):
    """Other places that hold what a field holds, nearly always or always."""
    taken, decoys = dict(layout), []
    for member in rng.choices(sorted(layout, key=str), k=rng.randrange(8)):
        if (at := free_place(rng, member, taken, end=SIZE)) is not None:
            taken[len(taken)] = at
            decoys.append((member, at, rng.choice((*IMPERFECT, copy))))
    return decoys


def test_a_unique_answer_is_never_wrong_whatever_the_layout(capsys):
    seen = Counter()

    @settings(max_examples=LAYOUTS, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64))
    def layout_by_layout(seed):
        rng = random.Random(seed)
        fields = rng.sample(SOCK_FIELDS, rng.randrange(6, 14))
        layout = random_layout(rng, fields, end=SIZE - 64)
        decoys = decoys_of(rng, layout)
        world = sock_world(rng, layout, decoys, per_kind=rng.randrange(1, 4), size=SIZE)
        # A perfect copy is the field to anybody; one that is alike by accident is as good as one.
        assume(all(tells(world, f, at) for forged, at, forge in decoys for f in fields
                   if not (f is forged and forge is copy)))
        answers = judge([search(f, world.samples["sock"]) for f in fields], world.samples, {})
        wrong = {f.name: (o.offset, layout[f]) for f, o in answers.items()
                 if o.state is State.KNOWN and o.offset != layout[f]}
        assert not wrong, wrong
        copied = {f for f, _, forge in decoys if forge is copy}
        seen["layouts"] += 1
        seen.update(f"{o.verdict}{' beside a perfect copy' if f in copied else ''}" for f, o in answers.items())

    layout_by_layout()
    with capsys.disabled():
        sys.stdout.write(f"\n{', '.join(f'{count} {what}' for what, count in sorted(seen.items()))}\n")
    alone = sum(seen[str(v)] for v in Verdict)
    assert seen[str(Verdict.OK)] > 0.8 * alone
