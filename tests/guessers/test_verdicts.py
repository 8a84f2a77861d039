import random
from collections import Counter

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from guessers.search import Found, Sample, alignment, search
from guessers.verdicts import NESTING, clashes, fitting, judge, peaceful, settle, share
from kcompat.fields import find
from kcompat.offsets import State, Verdict
from tests.guessers.synthetic import (
    IMPERFECT,
    SOCK_FIELDS,
    WINDOW,
    copy,
    free_place,
    random_layout,
    sock_world,
    tells,
)

SURE = {"samples": 9, "expected_false_positives": 0.0, "null_survivors": 0}
THIN = SURE | {"expected_false_positives": 3.0}
DPORT, NUM, STATE, TYPE, PROTOCOL, MARK, RCVBUF, SNDBUF, SADDR, SPORT, SRTT = map(find, (
    "skc_dport", "skc_num", "skc_state", "sk_type", "sk_protocol", "sk_mark", "sk_rcvbuf", "sk_sndbuf", "inet_saddr",
    "inet_sport", "srtt_us"))
OBJECT = {"sock": [Sample(bytes(4096), {})]}
seeds = st.integers(0, 2**48)


def verdicts(world, fields=SOCK_FIELDS):
    return judge([search(f, world.samples["sock"]) for f in fields], world.samples, {})


def wrong(world, answers):
    """The fields answered with another place than their own."""
    return {f.name: (o.offset, world.layout.get(f)) for f, o in answers.items()
            if o.state is State.KNOWN and o.offset != world.layout.get(f)}


def decoys_among(rng, layout, count, forges):
    taken, decoys = dict(layout), []
    for member in rng.choices(SOCK_FIELDS, k=count):
        if (at := free_place(rng, member, taken)) is not None:
            taken[len(taken)] = at
            decoys.append((member, at, rng.choice(forges)))
    return decoys


def judged(places, evidence=SURE):
    """Verdicts for {field: candidates}, all with the same evidence, or {field: (candidates, evidence)}."""
    found = [Found(f, *(c if isinstance(c[-1], dict) else (c, evidence))) for f, c in places.items()]
    return judge(found, OBJECT, {})


def test_no_wrong_unique_answer(capsys):
    """Decoys of every kind; some fields are not in the window at all, or lie past its end.

    A decoy differs from its field in one sample at least, as the experiments see to.
    """
    seen = Counter()

    @settings(max_examples=60)
    @given(seeds)
    def world_by_world(seed):
        rng = random.Random(seed)
        absent = set(rng.sample(SOCK_FIELDS, rng.randrange(5)))
        layout = random_layout(rng, absent=absent)
        decoys = decoys_among(rng, layout, rng.randrange(40), IMPERFECT)
        limit = rng.choice((WINDOW, WINDOW, 2500))
        gone = {f for f in SOCK_FIELDS if f not in layout or layout[f] + f.width > limit}
        world = sock_world(rng, layout, decoys, per_kind=rng.randrange(2, 6), limit=limit)
        # What equals a missing field in every sample (a byte-swapped inet_sport is skc_num) is that field to anybody.
        assume(all(tells(world, f, at) for forged, at, _ in decoys for f in {forged, *gone}))
        answers = verdicts(world)
        assert not wrong(world, answers)
        seen.update("not there" if field in gone else answer.verdict for field, answer in answers.items())

    world_by_world()
    report(capsys, "imperfect decoys", seen)
    assert seen[Verdict.OK] > 0.9 * sum(seen[v] for v in Verdict)


def test_perfect_copies_are_told_apart_by_structure_or_not_at_all(capsys):
    seen = Counter()

    @settings(max_examples=40)
    @given(seeds)
    def world_by_world(seed):
        rng = random.Random(seed)
        layout = random_layout(rng)
        decoys = decoys_among(rng, layout, rng.randrange(1, 12), (copy,))
        world = sock_world(rng, layout, decoys, per_kind=4)
        answers = verdicts(world)
        assert not wrong(world, answers)
        for field in {field for field, *_ in decoys}:
            seen[answers[field].verdict] += 1
            if answers[field].verdict is Verdict.AMBIGUOUS:
                assert layout[field] in answers[field].candidates

    world_by_world()
    report(capsys, "perfect copies", seen)


@settings(max_examples=25)
@given(seeds)
def test_a_copy_in_another_struct_is_no_answer_for_an_absent_field(seed):
    """As skc_v6_daddr before 3.13: not in sock_common, but in struct ipv6_pinfo behind the socket."""
    rng = random.Random(seed)
    gone = rng.choice([f for f in SOCK_FIELDS if f.struct == "sock_common" and f.width >= 2])
    layout = random_layout(rng, absent={gone}, end=3000)
    world = sock_world(rng, layout, [(gone, 3200, copy)], per_kind=4)
    answers = verdicts(world)
    assert answers[gone].state is State.UNKNOWN
    assert not wrong(world, answers)


@settings(max_examples=25)
@given(seeds)
def test_a_corrupted_sample_takes_verdicts_away_and_never_changes_them(seed):
    rng = random.Random(seed)
    world = sock_world(rng, random_layout(rng), per_kind=3)
    samples = world.samples["sock"]
    spoiled = rng.randrange(len(samples))
    samples[spoiled] = Sample(rng.choice((bytes(WINDOW), rng.randbytes(WINDOW), samples[spoiled - 1].window)),
                              samples[spoiled].values)
    answers = verdicts(world)
    assert not wrong(world, answers)
    assert any(o.state is State.UNKNOWN for o in answers.values())


@settings(max_examples=15)
@given(seeds)
def test_moving_every_outer_field_by_eight_moves_every_answer(seed):
    rng = random.Random(seed)
    layout = random_layout(rng, end=3900)
    moved = {f: o if f.struct == "sock_common" else o + 8 for f, o in layout.items()}
    here, there = (verdicts(sock_world(random.Random(seed), places, per_kind=5)) for places in (layout, moved))
    both = [f for f in layout if here[f].state is there[f].state is State.KNOWN]
    assert len(both) > 0.8 * len(layout)
    assert all(there[f].offset - here[f].offset == moved[f] - layout[f] for f in both)


@given(seeds)
def test_true_places_never_push_a_true_place_off(seed):
    layout = random_layout(random.Random(seed))
    for field, offset in layout.items():
        others = {f: o for f, o in layout.items() if f is not field}
        assert fitting(field, (offset,), others) == (offset,)
        assert clashes(field, offset, layout) == []
    assert peaceful(layout) == layout


@given(seeds, st.integers(1, 30))
def test_the_share_of_the_object_holds_the_true_place(seed, known):
    """Candidates at every aligned place: what the settled others leave of them includes the truth."""
    rng = random.Random(seed)
    layout = random_layout(rng)
    settled = dict(rng.sample(sorted(layout.items(), key=lambda i: i[1]), min(known, len(layout))))
    field = rng.choice(list(layout))
    settled.pop(field, None)
    places = fitting(field, range(0, WINDOW, alignment(field)), settled)
    assert layout[field] in places
    assert len(places) * alignment(field) <= share(field, settled, WINDOW) * WINDOW + alignment(field)


def test_one_place_with_evidence_is_an_answer():
    assert judged({DPORT: (12,)})[DPORT].offset == 12


def test_thin_evidence_is_no_answer_and_pushes_nobody_off():
    answers = judged({STATE: ((600,), THIN), MARK: ((440, 700), SURE), DPORT: (12,)})
    assert answers[STATE].verdict is Verdict.UNVERIFIED
    assert "by chance" in answers[STATE].reason
    assert answers[MARK].candidates == (440, 700)


def test_a_room_made_small_by_sure_neighbours_makes_thin_evidence_enough():
    barely = SURE | {"expected_false_positives": 0.01}
    alone = judged({STATE: ((18,), barely)})
    among = judged({STATE: ((18,), barely), MARK: (440,), RCVBUF: (260,)})
    assert alone[STATE].state is State.UNKNOWN
    assert among[STATE].offset == 18


def test_exchanged_values_that_fit_too_are_no_evidence():
    answers = judged({DPORT: ((12,), SURE | {"null_survivors": 2})})
    assert "exchanged" in answers[DPORT].reason


def test_a_bitfield_of_eight_bits_leaves_room_for_its_neighbour():
    """Before 5.6: sk_protocol is the second byte of a word, sk_type its upper half."""
    answers = judged({PROTOCOL: (329,), TYPE: (330, 1900), SADDR: (712,)})
    assert answers[PROTOCOL].offset == 329
    assert answers[PROTOCOL].width == 1
    assert answers[TYPE].offset == 330


def test_overlap_and_nesting_leave_one_of_several():
    answers = judged({NUM: (14,), DPORT: (12, 14, 700), MARK: (440,)})
    assert answers[DPORT].offset == 12
    assert answers[DPORT].evidence["excluded_by"] == {"14": ["sock_common.skc_num"], "700": ["sock.sk_mark"]}
    assert answers[DPORT].evidence["runner_up"] == 14


def test_of_two_that_clash_alone_neither_is_believed():
    answers = judged({DPORT: (14,), NUM: (14,)})
    assert {o.verdict for o in answers.values()} == {Verdict.UNVERIFIED}
    assert all("disputed" in o.reason or "other fields" in o.reason for o in answers.values())


def test_one_that_clashes_with_many_is_the_one_not_believed():
    answers = judged({DPORT: (2000,), MARK: (440,), RCVBUF: (260,), SNDBUF: (316,), SADDR: (712,), SPORT: (720,)})
    assert answers[DPORT].state is State.UNKNOWN
    assert answers[MARK].offset == 440
    assert answers[SPORT].offset == 720


def test_what_only_a_disbelieved_field_ruled_out_is_open_again():
    answers = judged({MARK: (3, ), DPORT: (12,), NUM: (14,), STATE: (18,), TYPE: (538, 540), RCVBUF: (260,)})
    assert answers[MARK].state is State.UNKNOWN
    assert answers[TYPE].candidates == (538, 540)
    assert answers[DPORT].offset == 12


def test_a_part_is_in_its_whole_and_a_union_is_one_place():
    message = {"msghdr": [Sample(bytes(128), {})]}
    whole, iov, ubuf, count, name = map(find, (
        "msg_iter", "msg_iter.iov", "msg_iter.ubuf", "msg_iter.count", "msg_name"))
    found = {whole: (16,), iov: (32,), ubuf: (32, 112), count: (40, 64), name: (0, 24)}
    answers = judge([Found(f, c, SURE) for f, c in found.items()], message, {})
    assert [answers[f].offset for f in found] == [16, 32, 32, 40, 0]


def test_flow_keys_are_objects_of_their_own():
    answers = judge([Found(find("flowi4.saddr"), (12,), SURE), Found(DPORT, (12,), SURE)],
                    OBJECT | {"flowi4": [Sample(bytes(128), {})]}, {})
    assert {o.offset for o in answers.values()} == {12}


def test_what_no_sample_tells_has_the_reason_given():
    answers = judge([Found(SRTT, (), {"samples": 0})], {}, {SRTT: "no hook for it here"})
    assert answers[SRTT].verdict is Verdict.UNVERIFIED
    assert answers[SRTT].reason == "no hook for it here"


def test_no_place_at_all_is_said_so():
    assert "no place" in judged({SRTT: ((), SURE)})[SRTT].reason


def test_fields_that_can_never_agree_are_all_left_open():
    """Whatever the solver is told, it ends, and says nothing rather than something arbitrary."""
    @given(st.dictionaries(st.sampled_from(SOCK_FIELDS), st.lists(st.integers(0, 60), min_size=1, max_size=3)))
    def any_candidates(places):
        settled = settle({f: Found(f, tuple(sorted(set(c))), SURE) for f, c in places.items()},
                         dict.fromkeys(places, 4096))
        assert not any(clashes(f, o, settled) for f, o in settled.items())

    any_candidates()


def test_the_nest_names_structs_of_the_catalogue():
    assert {f.struct for f in SOCK_FIELDS} == set(NESTING)


def report(capsys, what, seen):
    present = sum(seen[v] for v in Verdict)
    with capsys.disabled():
        print(f"\n{what}: {present} fields, {seen[Verdict.OK] / present:.1%} ok, "  # noqa: T201
              f"{seen[Verdict.AMBIGUOUS] / present:.1%} ambiguous, {seen[Verdict.UNVERIFIED] / present:.1%} "
              f"unverified, 0 wrong; {seen['not there']} more that are not there, 0 claimed")
