"""Offset values: three states that cannot be mixed up, and the JSON of the design."""

import json

import pytest

from kcompat.fields import find
from kcompat.offsets import Offset, Offsets, State, Verdict

DPORT, PROTOCOL, SRTT = find("skc_dport"), find("sk_protocol"), find("srtt_us")


def test_a_known_offset_in_json_is_the_designs():
    made = Offset.known(DPORT, 12, "guess", confidence=0.123456)

    assert made.as_json() == {
        "struct": "sock_common", "member": "skc_dport", "state": "known", "offset": 12, "bit_offset": None, "width": 2,
        "source": "guess", "verdict": "ok", "confidence": 0.1235, "candidates": [12], "reason": None}


def test_an_absent_field_has_no_offset_and_a_reason():
    made = Offset.absent(DPORT, "btf", "no such member").as_json()

    assert (made["state"], made["verdict"], made["offset"], made["width"]) == ("absent", "absent", None, None)
    assert (made["reason"], made["candidates"], made["confidence"]) == ("no such member", [], 1.0)


@pytest.mark.parametrize("candidates, verdict", [((), "unverified"), ((4,), "unverified"), ((4, 8), "ambiguous")])
def test_an_unknown_field_is_ambiguous_only_with_several_candidates(candidates, verdict):
    made = Offset.unknown(DPORT, "guess", "why", candidates=candidates)

    assert (made.verdict, made.confidence, made.offset) == (verdict, 0.0, None)
    assert made.as_json()["candidates"] == list(candidates)


@pytest.mark.parametrize("state, offset", [(State.KNOWN, None), (State.ABSENT, 0), (State.UNKNOWN, 0)])
def test_a_state_and_an_offset_that_contradict_cannot_be_made(state, offset):
    with pytest.raises(ValueError, match=r"sock_common\.skc_dport"):
        Offset(DPORT, state, "btf", offset)


def test_offset_zero_is_known():
    made = Offset.known(find("skc_daddr"), 0, "btf")

    assert made.state is State.KNOWN and made.as_json()["offset"] == 0


def test_same_place_is_about_the_place_only():
    here = Offset.known(PROTOCOL, 532, "btf", width=2)

    assert here.same_place(Offset.known(PROTOCOL, 532, "guess", width=1, confidence=0.5))
    assert not here.same_place(Offset.known(PROTOCOL, 534, "guess"))
    assert not here.same_place(Offset.known(PROTOCOL, 532, "dwarf", bit_offset=3, bit_size=8))
    assert not here.same_place(Offset.absent(PROTOCOL, "dwarf", "gone"))


def test_offsets_keep_order_and_only_what_was_said():
    offsets = Offsets([Offset.known(SRTT, 1, "btf"), Offset.unknown(DPORT, "btf", "why")])

    assert list(offsets) == [SRTT, DPORT] and len(offsets) == 2
    assert PROTOCOL not in offsets
    assert list(offsets.known()) == [SRTT]


def test_states_and_verdicts_are_their_json_words():
    assert json.dumps([*State, *Verdict]) == json.dumps(
        ["known", "absent", "unknown", "ok", "ambiguous", "absent", "unverified"])
