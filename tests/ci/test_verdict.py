"""A VM passes only by its nonce and a zero; everything else is a failure or cannot be told."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ci.results import exit_code
from ci.verdict import Outcome, Report, judge, last_lines, parse_report, printable

NONCE = "0123456789abcdef0123456789abcdef"
START = f"{NONCE} start 5.10.0-46-amd64 8.79\r\n"
GOOD = f"{START}{NONCE} exit 0\r\n"


def verdict(report, console="", release="5.10.0-46-amd64", deadline=None):
    return judge(parse_report(report, NONCE), console, release, deadline)


def test_a_whole_report_with_zero_passes():
    assert parse_report(GOOD, NONCE) == Report("5.10.0-46-amd64", 8.79, 0)
    assert verdict(GOOD).outcome is Outcome.PASS


@given(st.text(), st.text())
def test_no_text_without_the_nonce_passes(report, console):
    assume(NONCE not in report)
    assert verdict(report, console, release=None).outcome is Outcome.UNKNOWN


@given(st.text(), st.text(), st.text())
def test_the_nonce_alone_in_any_surroundings_does_not_pass(before, between, after):
    assert verdict(f"{before}{NONCE}{between}{NONCE}{after}", release=None).outcome is not Outcome.PASS


@given(st.integers(0, len(GOOD) - 1))
def test_no_cut_off_report_passes(length):
    assert verdict(GOOD[:length]).outcome is Outcome.UNKNOWN


@given(st.text(min_size=1))
def test_nothing_may_follow_the_exit_line(more):
    assume(more.strip("\r\n"))
    assert verdict(GOOD + more).outcome is Outcome.UNKNOWN


@given(st.integers(1, 255))
def test_any_other_status_fails(status):
    found = verdict(f"{START}{NONCE} exit {status}\n")
    assert (found.outcome, found.exit_status) == (Outcome.FAIL, status)


@given(st.integers(256, 99999) | st.integers(max_value=-1))
def test_impossible_statuses_are_not_believed(status):
    assert verdict(f"{START}{NONCE} exit {status}\n").outcome is Outcome.UNKNOWN


def test_an_empty_nonce_matches_nothing():
    assert parse_report(" start x 1.0\n exit 0\n", "") == Report()


@pytest.mark.parametrize(("report", "phase"), [("", "in boot"), (START, "in the command"), (GOOD, "in shutdown")])
def test_a_passed_deadline_cannot_be_told_whatever_was_reported(report, phase):
    found = verdict(report, deadline=60.0)
    assert (found.outcome, found.reason) == (Outcome.UNKNOWN, f"deadline of 60 s passed {phase}")


def test_a_panic_cannot_be_told_even_after_exit_0():
    found = verdict(GOOD, "[ 9.1] Kernel panic - not syncing: Fatal exception\r\n---[ end")
    assert (found.outcome, found.reason) == (Outcome.UNKNOWN, "Kernel panic - not syncing: Fatal exception")


def test_another_kernel_than_asked_for_cannot_be_told():
    assert "wrong kernel" in verdict(GOOD, release="6.1.0-1-amd64").reason


def test_a_vm_lost_in_the_command_is_told_by_its_last_line():
    found = verdict(START, "one\r\ntwo\r\n\r\n")
    assert (found.outcome, found.reason) == (Outcome.UNKNOWN, "the VM was lost while the command ran: two")


def test_an_oops_spoils_a_pass():
    found = verdict(GOOD, "[   12.345678] BUG: unable to handle page fault for address: 00\r\n")
    assert found.outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([Outcome.PASS, Outcome.PASS], 0),
        ([Outcome.PASS, Outcome.FAIL], 1),
        ([Outcome.UNKNOWN, Outcome.FAIL], 1),
        ([Outcome.PASS, Outcome.UNKNOWN], 3),
        ([], 3),
    ],
)
def test_exit_codes(outcomes, code):
    assert exit_code(outcomes) == code


@given(st.text())
def test_printable_leaves_no_control_characters(text):
    assert all(char.isprintable() or char == "\t" for char in printable(text))


def test_last_lines_drop_escapes_and_empty_lines():
    assert last_lines("a\r\n\x1b[31mred\x1b[0m\r\n\n \n", 40) == ["a", "red"]
