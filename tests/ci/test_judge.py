"""What a guest reports becomes checks: nothing but a full, right answer passes, and each fault is named."""

import copy

import pytest

from ci.job import Run
from ci.judge import Dwarf, Recording, build_id, exported, judge, recorded
from ci.results import CHECKS, worst
from ci.verdict import Outcome, Step, Verdict

PASSED = Verdict(Outcome.PASS, "exit status 0", 0)
LOST = Verdict(Outcome.UNKNOWN, "Kernel panic - not syncing: sysrq triggered crash")
IDENTITY = {"build_id": "abc", "release": "5.10", "version": "", "machine": "x86_64"}


def answer(member, offset, *, state="known", verdict="ok", width=4, bit_offset=None, reason=None):
    return {"struct": "sock", "member": member, "state": state, "offset": offset, "width": width,
            "bit_offset": bit_offset, "verdict": verdict, "candidates": [], "reason": reason}


OPEN = answer("sk_mark", None, state="unknown", verdict="ambiguous", width=None, reason="two places")
ABSENT = answer("sk_mark", None, state="absent", verdict="absent", width=None)
FIELDS = [answer("sk_type", 516), answer("sk_mark", 480)]
COUNTS = {"tcp4 5000": {"bytes_written": 10}}
RECORD = {"tags": {"src_ip": "127.0.0.1", "dst_ip": "127.0.0.1", "dst_port": "5000", "direction": "outgoing"},
          "fields": {"bytes_written": 10}}
FOUND = {
    "info": {"status": 0, "said": {"kernel": IDENTITY}, "stderr": ""},
    "guess": {"status": 0, "said": {"kernel": IDENTITY, "fields": FIELDS, "stats": {}}, "stderr": ""},
    "collect": {"started": True, "status": 0, "stderr": "", "expected": COUNTS, "records": [RECORD],
                "addresses": ["127.0.0.1"]},
    "btf": {"there": True, "status": 0, "said": {"fields": FIELDS}, "stderr": ""},
    "offsets": {"status": 0, "lines": "{}\n", "stderr": ""},
    "tests": {"status": 0, "tests": [["tests/kernel/test_guess.py::test_a", "passed", 1.5, ""]]},
}


@pytest.fixture
def found():
    return {name: copy.deepcopy(told) for name, told in FOUND.items()}


def judged(found, verdict=PASSED, dwarf=None):
    run = Run(verdict, "", 8.5, 60.0, None, [Step(name, 1.0, told) for name, told in found.items()])
    checks, fields = judge(run, dwarf)
    return {check.name: check for check in checks}, {field.name: field for field in fields}


def test_a_guest_where_all_is_right_passes(found):
    checks, fields = judged(found)
    assert list(checks) == [name for name in CHECKS if name not in ("fetch", "dwarf", "headers")]
    assert worst(check.outcome for check in checks.values()) is Outcome.PASS
    assert {field.outcome for field in fields.values()} == {Outcome.PASS}
    assert checks["btf"].reason == "2 fields equal"


@pytest.mark.parametrize("change", [{"offset": 484}, {"width": 2}, {"bit_offset": 3}])
def test_a_field_that_btf_places_elsewhere_fails_by_name(found, change):
    found["guess"]["said"]["fields"][1].update(change)
    checks, fields = judged(found)
    assert checks["btf"].outcome is fields["sock.sk_mark"].outcome is Outcome.FAIL
    assert "1 wrong: sock.sk_mark: the guess says 48" in checks["btf"].reason
    assert fields["sock.sk_type"].outcome is Outcome.PASS


def test_an_absent_field_must_be_absent_for_the_judge(found):
    found["guess"]["said"]["fields"][1] = ABSENT
    assert judged(found)[0]["btf"].outcome is Outcome.FAIL
    found["btf"]["said"]["fields"] = [FIELDS[0], ABSENT]
    assert judged(found)[0]["btf"].outcome is Outcome.PASS


def test_an_open_field_cannot_be_told_where_the_collector_runs_without_it(found):
    found["guess"]["said"]["fields"][1] = OPEN
    checks, fields = judged(found)
    assert (fields["sock.sk_mark"].outcome, fields["sock.sk_mark"].reason) == (Outcome.UNKNOWN, "two places")
    assert (checks["guess"].outcome, checks["guess"].reason) == (Outcome.PASS, "1 fields; left open: sock.sk_mark")
    assert (checks["btf"].outcome, checks["btf"].reason) == (Outcome.PASS, "1 fields equal")


def test_an_open_field_fails_where_the_collector_does_not_run(found):
    found["guess"]["said"]["fields"][1] = OPEN
    found["collect"] = {"started": False, "stderr": "kcompat: netflow needs sock.sk_mark"}
    checks, fields = judged(found)
    assert checks["guess"].outcome is fields["sock.sk_mark"].outcome is Outcome.FAIL
    assert checks["collect"].reason == "it did not start: kcompat: netflow needs sock.sk_mark"


def test_every_judge_is_asked(found):
    dwarf = Dwarf({"fields": [FIELDS[0], answer("sk_mark", 488)]}, "", 2.0)
    checks, fields = judged(found, dwarf=dwarf)
    assert checks["btf"].outcome is Outcome.PASS
    assert checks["dwarf"].outcome is fields["sock.sk_mark"].outcome is Outcome.FAIL
    assert fields["sock.sk_mark"].judges["dwarf"] == {"state": "known", "offset": 488}


def test_without_btf_dwarf_judges(found):
    found["btf"] = {"there": False}
    checks, _ = judged(found, dwarf=Dwarf({"fields": FIELDS}, "", 2.0))
    assert ("btf" in checks, checks["dwarf"].outcome, checks["dwarf"].seconds) == (False, Outcome.PASS, 2.0)


def test_headers_judge_under_their_own_name(found):
    found["btf"] = {"there": False}
    wrong = [FIELDS[0], answer("sk_mark", 488)]
    checks, fields = judged(found, dwarf=Dwarf({"fields": wrong}, "", 2.0, name="headers"))
    assert ("btf" in checks, "dwarf" in checks, checks["headers"].outcome) == (False, False, Outcome.FAIL)
    assert "headers says 488" in fields["sock.sk_mark"].reason


def test_without_any_judge_nothing_is_told(found):
    found["btf"] = {"there": False}
    checks, fields = judged(found)
    assert checks["btf"].outcome is fields["sock.sk_type"].outcome is Outcome.UNKNOWN


def test_a_field_no_judge_knows_is_not_proved(found):
    found["btf"]["said"]["fields"] = [FIELDS[0]]
    checks, fields = judged(found)
    assert checks["btf"].outcome is fields["sock.sk_mark"].outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("length", range(len(FOUND)))
def test_whatever_a_lost_guest_did_not_report_cannot_be_told(length):
    checks, _ = judged(dict(list(FOUND.items())[:length]), LOST)
    unknown = {name: check for name, check in checks.items() if check.outcome is Outcome.UNKNOWN}
    assert worst(check.outcome for check in checks.values()) is Outcome.UNKNOWN
    assert checks["shutdown"].reason == LOST.reason
    assert {name for name in FOUND if name != "offsets"} - {*list(FOUND)[:length]} <= {*unknown}


def test_a_step_that_could_not_be_made_cannot_be_told(found):
    found["tests"] = {"error": "did not end within 300 s"}
    checks, _ = judged(found)
    assert (checks["tests"].outcome, checks["tests"].reason) == (Outcome.UNKNOWN, "did not end within 300 s")


@pytest.mark.parametrize(("step", "told", "outcome", "reason"), [
    ("info", {"status": 2, "said": None, "stderr": "a\nkcompat: no"}, Outcome.FAIL, "exit status 2: kcompat: no"),
    ("guess", {"status": 3, "said": None, "stderr": "kcompat: forbidden"}, Outcome.FAIL, "kcompat: forbidden"),
    ("btf", {"there": True, "status": 1, "said": None, "stderr": "bad"}, Outcome.FAIL, "exit status 1: bad"),
    ("tests", {"status": 1, "tests": [["t::a", "passed", 0, ""], ["t::b", "failed", 0, "x"]]}, Outcome.FAIL, "t::b"),
    ("tests", {"status": 2, "tests": None}, Outcome.FAIL, "pytest ended with 2 and no report"),
    ("tests", {"status": 3, "tests": [["t::a", "passed", 0, ""]]}, Outcome.FAIL, "pytest ended with 3"),
    ("tests", {"status": 0, "tests": [["t::a", "skipped", 0, ""]]}, Outcome.UNKNOWN, "none of 1 tests ran"),
    ("tests", {"status": None, "overdue": "did not end within 9 s", "tests": None}, Outcome.UNKNOWN, "within 9 s"),
    ("tests", {"status": None, "overdue": "did not end within 9 s", "tests": [["t::a", "passed", 0, ""]]},
     Outcome.UNKNOWN, "1 passed, but pytest did not end within 9 s"),
    ("tests", {"status": None, "overdue": "did not end within 9 s", "tests": [["t::b", "failed", 0, "x"]]},
     Outcome.FAIL, "1 failed: t::b"),
    ("tests", {"status": 5, "tests": []}, Outcome.UNKNOWN, "none of 0 tests ran"),
    ("collect", FOUND["collect"] | {"records": []}, Outcome.FAIL, "tcp4 bytes_written 0, not 10"),
    ("collect", FOUND["collect"] | {"records": [RECORD] * 2}, Outcome.FAIL, "tcp4 bytes_written 20, not 10"),
    ("collect", FOUND["collect"] | {"expected": {}}, Outcome.UNKNOWN, "nothing was sent"),
    ("collect", FOUND["collect"] | {"status": 1, "stderr": "lost"}, Outcome.FAIL, "it ended with 1: lost"),
])
def test_each_fault_has_its_outcome_and_reason(found, step, told, outcome, reason):
    found[step] = told
    check = judged(found)[0][step]
    assert check.outcome is outcome
    assert reason in check.reason


def test_what_the_guest_said_of_itself():
    run = Run(PASSED, "", 8.5, 60.0, None, [Step(name, 1.0, told) for name, told in FOUND.items()])
    assert (build_id(run), exported(run)) == ("abc", "{}\n")
    assert (build_id(Run(LOST, "", None, 1.0)), exported(Run(LOST, "", None, 1.0))) == (None, None)


def test_a_recording_comes_with_what_a_judge_says_or_not_at_all(found):
    def of(found, dwarf=None):
        return recorded(Run(PASSED, "", 8.5, 60.0, None, [Step(n, 1.0, told) for n, told in found.items()]), dwarf)

    assert of(found) is None
    found["guess"]["recording"] = "YWJj"
    assert of(found) == Recording(b"abc", {"fields": FIELDS})
    found["btf"] = {"there": False}
    assert of(found) is None
    assert of(found, Dwarf({"fields": FIELDS[:1]}, "", 1.0)) == Recording(b"abc", {"fields": FIELDS[:1]})
