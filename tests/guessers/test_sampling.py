"""Which of the keys routed by during a send is taken for the send's own."""

from guessers.sampling import whole_key

SADDR, DADDR, MARK = bytes([127, 3, 5, 7]), bytes([127, 11, 13, 17]), b"mark"
TELLING = [(SADDR,), (DADDR,), (MARK,)]
OURS = MARK + bytes(36) + SADDR + DADDR + bytes(80)


def test_ours_is_the_one_that_holds_all_we_chose():
    assert whole_key([bytes(128), MARK + DADDR + bytes(120), OURS], TELLING) == OURS
    assert whole_key([bytes(128), MARK + DADDR + bytes(120)], TELLING) is None
    assert whole_key([], TELLING) is None


def test_a_key_of_ours_that_was_left_on_the_stack_behind_another_is_not_that_others():
    check = bytes(44) + SADDR + bytes(16) + OURS[:64]
    assert whole_key([check, OURS], TELLING) == whole_key([OURS, check], TELLING) == OURS


def test_a_value_may_have_several_encodings():
    assert whole_key([OURS], [(b"none", SADDR), (DADDR, b"none")]) == OURS
    assert whole_key([OURS], [(b"none", b"no")]) is None
