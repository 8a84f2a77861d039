"""The judge of old kernels, on programs assembled by hand: each breaks one rule, or just does not."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcompat.bpf import Object, ObjectProgram
from kcompat.dialect import DIALECTS, check, release_of
from kcompat.errors import KcompatError
from kcompat.maps import MapSpec
from kcompat.sysbpf import MapType


def ins(code, dst=0, src=0, offset=0, immediate=0):
    return struct.pack("<BBhi", code, dst | src << 4, offset, immediate)


RETURN = ins(0xB7) + ins(0x95)  # r0 = 0; exit
KEY = ins(0x7A, 10, 0, -8) + ins(0xBF, 2, 10) + ins(0x07, 2, 0, 0, -8)  # *(u64 *)(fp - 8) = 0; r2 = fp - 8
MAP = ins(0x18, 1, 1) + ins(0)  # r1 = map
LOOKUP = KEY + MAP + ins(0x85, immediate=1)
IF_NULL_RETURN = ins(0x55, 0, 0, 1) + ins(0x95)  # if (r0) skip; exit
# *(u64 *)(fp - 8) = *(u64 *)(fp - 16) = 0; r7 = fp - 16 + (r1->word & 8)
PLACE = (ins(0x7A, 10, 0, -8) + ins(0x7A, 10, 0, -16) + ins(0x79, 6, 1) + ins(0x57, 6, immediate=8) + ins(0xBF, 7, 10)
         + ins(0x07, 7, immediate=-16) + ins(0x0F, 7, 6))
READ_TO_R1 = ins(0xB7, 2, immediate=8) + ins(0xB7, 3) + ins(0x85, immediate=4)


def refusals(code, dialect, name="kprobe__x", kind=MapType.HASH):
    at = [i for i in range(0, len(code), 8) if code[i] == 0x18]
    program = ObjectProgram(name, code, tuple((i // 8, "table") for i in at))
    return check(Object((program,), (MapSpec("table", kind, 8, 64, 8),), "GPL"), dialect)[0].refusals


def first_to_take(code, **details):
    return next((d for d in DIALECTS if not refusals(code, d, **details)), None)


@pytest.mark.parametrize(("what", "code", "first"), [
    ("nothing at all", RETURN, "4.4"),
    ("a lookup, tested, then written to",
     LOOKUP + IF_NULL_RETURN + ins(0x7A, 0, 0, 8) + RETURN, "4.4"),
    ("a helper that writes to the stack where something was written",
     ins(0x7A, 10, 0, -8) + ins(0xBF, 1, 10) + ins(0x07, 1, immediate=-8) + READ_TO_R1 + RETURN, "4.4"),
    ("a helper that writes to the stack where half was written",
     ins(0x62, 10, 0, -8) + ins(0xBF, 1, 10) + ins(0x07, 1, immediate=-8) + READ_TO_R1 + RETURN, "4.9"),
    ("one that writes to the stack first", ins(0xBF, 1, 10) + ins(0x07, 1, immediate=-8) + READ_TO_R1 + RETURN, "4.9"),
    ("15 questions, the answers in registers that nobody reads",
     b"".join(ins(0x79, 2, 1, 8 * n) + ins(0xB7, 6, immediate=n) + ins(0x15, 2, 0, 1)
              + ins(0xB7, 6, immediate=99) + ins(0x7B, 10, 1, -8 * n - 8) + ins(0x79, 7, 10, -8 * n - 8)
              for n in range(15)) + RETURN, "4.4"),
    ("a map value spilt to the stack and loaded again",
     LOOKUP + IF_NULL_RETURN + ins(0x7B, 10, 0, -16) + ins(0x79, 6, 10, -16) + ins(0x7A, 6) + RETURN, "4.4"),
    ("a map value moved by a constant, then written to",
     LOOKUP + IF_NULL_RETURN + ins(0x07, 0, immediate=8) + ins(0x7A, 0) + RETURN, "4.9"),
    ("a copy of what a lookup gave, made before the test",
     LOOKUP + ins(0xBF, 6, 0) + IF_NULL_RETURN + ins(0x7A, 6) + RETURN, "4.14"),
    ("a helper that writes to a map value",
     LOOKUP + IF_NULL_RETURN + ins(0xBF, 1, 0) + READ_TO_R1 + RETURN, "4.14"),
    ("a key in a map value",
     LOOKUP + IF_NULL_RETURN + ins(0xBF, 2, 0) + MAP + ins(0x85, immediate=1) + RETURN, "4.19"),
    ("a jump back to code that ends", ins(0x05, offset=2) + RETURN + ins(0x05, offset=-3), "4.4"),
    ("a loop", ins(0xB7, 6, immediate=3) + ins(0x07, 6, immediate=-1) + ins(0x55, 6, 0, -2) + RETURN, "5.4"),
    ("more than 4096 instructions", ins(0xB7, 1) * 4095 + RETURN, "5.4"),
    ("a 32-bit jump", ins(0x16, 1, offset=0) + RETURN, "5.4"),
    ("an atomic exchange", ins(0xDB, 10, 1, -8, 0xE1) + RETURN, "current"),
    ("a number from the stack at a place that is known within bounds", PLACE + ins(0x79, 0, 7) + RETURN, "current"),
    ("a number to there", PLACE + ins(0x7A, 7) + RETURN, None),
    ("bpf_get_current_task", ins(0x85, immediate=35) + RETURN, "4.9"),
    ("bpf_probe_read_kernel", ins(0xBF, 1, 10) + ins(0x85, immediate=113) + RETURN, "5.10"),
    ("600 bytes of stack", ins(0x7A, 10, 0, -600) + RETURN, None),
    ("a lookup that is not tested", LOOKUP + ins(0x7A, 0) + RETURN, None),
    ("a number as an address", ins(0xB7, 6, immediate=1) + ins(0x79, 7, 6) + RETURN, None),
    ("a helper nobody has heard of", ins(0x85, immediate=9999) + RETURN, None)])
def test_the_first_dialect_that_takes(what, code, first):
    assert first_to_take(code) == first, what


@pytest.mark.parametrize(("name", "first"), [("kprobe__f", "4.4"), ("tp__f", "4.9"), ("rawtp__f", "4.19")])
def test_the_kinds_of_program(name, first):
    assert first_to_take(RETURN, name=name) == first


@pytest.mark.parametrize(("kind", "first"), [
    (MapType.ARRAY, "4.4"), (MapType.PERF_EVENT_ARRAY, "4.4"), (MapType.PERCPU_HASH, "4.9"),
    (MapType.LRU_HASH, "4.14"), (27, "5.10"), (250, None)])
def test_the_kinds_of_map_a_program_uses(kind, first):
    assert first_to_take(LOOKUP + RETURN, kind=kind) == first


def test_only_one_way_of_a_branch_need_be_wrong():
    """if (r1 of ctx) r6 = ctx else r6 = 0; then r6 is read from."""
    code = (ins(0x79, 2, 1) + ins(0xB7, 6) + ins(0x15, 2, 0, 1) + ins(0xBF, 6, 1) + ins(0x79, 7, 6) + RETURN)
    assert refusals(code, "current") == ("instruction 4 reads from r6, which holds zero",)


def test_a_way_that_zero_rules_out_is_not_gone():
    """r6 = lookup(), or 0 where that is NULL; if (r6) it is written to."""
    code = LOOKUP + ins(0xBF, 6, 0) + ins(0x15, 6, 0, 1) + ins(0x05, offset=1) + ins(0xB7, 6) + ins(0x15, 6, 0, 1) + (
        ins(0x7A, 6) + RETURN)
    assert first_to_take(code) == "4.4"


def test_what_the_stack_holds_is_forgotten_when_written_over():
    code = (LOOKUP + IF_NULL_RETURN + ins(0x7B, 10, 0, -16) + ins(0x72, 10, 0, -12) + ins(0x79, 6, 10, -16)
            + ins(0x7A, 6) + RETURN)
    assert "holds a number" in refusals(code, "current")[0]


def test_a_dialect_there_is_not():
    with pytest.raises(KcompatError, match=r"no dialect '3\.10'; there are 4\.4"):
        release_of("3.10")


def test_dialects_are_in_order_and_each_takes_what_the_one_before_took():
    releases = [release_of(d) for d in DIALECTS]
    assert releases == sorted(releases)


@given(st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=40).map(b"".join), st.sampled_from(DIALECTS))
def test_any_bytes_are_judged_and_never_raise(code, dialect):
    """Jumps may leave such a program and registers not exist: that is a refusal, not an exception."""
    refusals(code, dialect)
