"""The memory answers only what agrees with itself and what an event has just confirmed."""

import logging

import pytest

from kcompat.engine import resolve
from kcompat.errors import KcompatError, Unsupported
from kcompat.fields import Field, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State, Verdict
from offset_db import rows
from offset_db.db import Database
from offset_db.resolver import DatabaseResolver

DADDR, DPORT, COOKIE, NUM = find("skc_daddr"), find("skc_dport"), find("skc_cookie"), find("skc_num")


def confirm(kernel, offsets):
    return {o.field: True for o in offsets if o.state is State.KNOWN}


def refute_daddr(kernel, offsets):
    return confirm(kernel, offsets) | {DADDR: False}


def ask(db, kernel, *wanted, verify=confirm):
    return {o.field: o for o in DatabaseResolver(db, verify).resolve(kernel, wanted)}


def test_a_hit_tells_where_it_came_from(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "guess", confidence=0.9)])
    answer = ask(db, kernel, DADDR, DPORT)[DADDR]
    assert (answer.state, answer.offset, answer.width, answer.confidence) == (State.KNOWN, 0, 4, 0.9)
    (stored,) = db.offsets(kernel)
    assert answer.source == "db"
    assert answer.evidence == {"recorded_source": "guess", "recorded_at": stored.recorded_at, "tested": True}


def test_another_kernel_is_a_miss_unless_an_event_bears_it_out(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf")])
    rebuilt = Kernel("cd" * 20, kernel.release, kernel.version, kernel.machine)
    assert ask(db, rebuilt, DADDR, verify=None) == ask(db, rebuilt, DADDR, verify=lambda kernel, offsets: {}) == {}
    assert ask(db, rebuilt, DADDR)[DADDR].evidence["builds"] == [kernel.key]


@pytest.mark.parametrize(("sources", "preferred"), [
    (("guess", "dwarf", "btf"), "btf"), (("guess", "dwarf"), "dwarf"), (("guess",), "guess")])
def test_the_best_of_agreeing_sources_answers(db, kernel, sources, preferred):
    db.record(kernel, [Offset.known(DADDR, 0, source) for source in sources])
    assert ask(db, kernel, DADDR)[DADDR].evidence["recorded_source"] == preferred


@pytest.mark.parametrize("held", [
    Offset.unknown(DADDR, "guess", "ambiguous", candidates=(0, 8)),
    Offset.known(DADDR, 0, "a neighbour"),
    Offset(DADDR, State.KNOWN, "guess", 0, 4, verdict=Verdict.AMBIGUOUS, candidates=(0, 8)),
    # An event sees where a value begins.
    Offset.known(DADDR, 0, "btf", width=1),
    Offset(DADDR, State.KNOWN, "btf", 0, None, verdict=Verdict.OK),
])
def test_what_is_not_sure_does_not_answer(db, kernel, held):
    db.record(kernel, [held])
    assert ask(db, kernel, DADDR) == {}


def test_a_disputed_field_stays_unknown_and_names_both_sides(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DADDR, 4, "guess"), Offset.known(DPORT, 12, "btf")])
    answers = ask(db, kernel, DADDR, DPORT)
    assert answers[DPORT].offset == 12
    assert (answers[DADDR].state, answers[DADDR].disputed) == (State.UNKNOWN, True)
    assert answers[DADDR].reason == "sources disagree: btf says 0, guess says 4"


def test_no_later_source_decides_a_dispute(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.absent(DADDR, "guess", "not there")])
    later = DatabaseResolver(db, None)
    later.resolve = lambda kernel, wanted: [Offset.known(f, 0, "btf") for f in wanted]
    answer = resolve(kernel, [DADDR], [DatabaseResolver(db, confirm), later]).offsets[DADDR]
    assert (answer.state, answer.reason) == (State.UNKNOWN, "sources disagree: btf says 0, guess says absent")


def test_verify_sees_all_that_may_be_given_once(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DPORT, 12, "guess"),
                       Offset.absent(COOKIE, "btf", "no such member")])
    seen = []
    answers = ask(db, kernel, DADDR, DPORT, COOKIE, verify=lambda k, offsets: seen.append((k, offsets)) or {})
    ((asked_kernel, offsets),) = seen
    assert (asked_kernel, {o.field for o in offsets}) == (kernel, {DADDR, DPORT, COOKIE})
    assert answers[COOKIE].state is State.ABSENT


def test_what_the_event_confirms_is_marked_verified(db, kernel, monkeypatch):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DPORT, 12, "btf")])
    monkeypatch.setattr(rows, "now", lambda: "2031-01-01T00:00:00Z")
    ask(db, kernel, DADDR)
    verified = {s.offset.field: s.verified_at for s in db.offsets(kernel)}
    assert verified == {DADDR: "2031-01-01T00:00:00Z", DPORT: None}


def test_what_the_event_did_not_show_is_given_but_not_called_verified(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DPORT, 12, "btf")])
    answers = ask(db, kernel, DADDR, DPORT, verify=lambda kernel, offsets: {DADDR: True})
    assert {f: a.evidence["tested"] for f, a in answers.items()} == {DADDR: True, DPORT: False}
    assert {s.offset.field for s in db.offsets(kernel) if s.verified_at} == {DADDR}


def test_a_field_is_marked_once_a_day(db, kernel, monkeypatch):
    db.record(kernel, [Offset.known(DADDR, 0, "btf")])
    for now, marked in (("2031-01-01T00:00:00Z", "2031-01-01T00:00:00Z"),
                        ("2031-01-01T23:59:59Z", "2031-01-01T00:00:00Z"),
                        ("2031-01-02T00:00:00Z", "2031-01-02T00:00:00Z")):
        monkeypatch.setattr(rows, "now", lambda now=now: now)
        assert ask(db, kernel, DADDR)
        assert [s.verified_at for s in db.offsets(kernel)] == [marked]


def test_what_the_event_refutes_is_quarantined_with_all_who_said_so(db, kernel, caplog):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DADDR, 0, "guess"), Offset.known(DPORT, 12, "btf")])
    answers = ask(db, kernel, DADDR, DPORT, verify=refute_daddr)
    assert list(answers) == [DPORT]
    reasons = {(s.offset.field, s.offset.source): s.quarantine_reason for s in db.offsets(kernel)}
    refuted = "refuted by an event"
    assert reasons == {(DADDR, "btf"): refuted, (DADDR, "guess"): refuted, (DPORT, "btf"): None}
    assert "btf says 0 is refuted" in caplog.text
    assert list(ask(db, kernel, DADDR, DPORT)) == [DPORT]


def test_who_is_refuted_in_one_field_is_not_believed_in_what_no_event_shows(db, kernel):
    """A row of another kernel under this one's key: what is wrong of it may lie where the event does not look."""
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DPORT, 12, "btf"),
                       Offset.absent(COOKIE, "btf", "no such member"), Offset.known(NUM, 8, "guess")])
    wanted = DADDR, DPORT, COOKIE, NUM
    first = ask(db, kernel, *wanted, verify=lambda kernel, offsets: {DADDR: False})
    again = ask(db, kernel, *wanted, verify=lambda kernel, offsets: {})
    for answers in (first, again):
        assert DADDR not in answers
        assert {answers[f].state for f in (DPORT, COOKIE)} == {State.UNKNOWN}
        assert answers[DPORT].reason == ("an event refuted sock_common.skc_daddr from btf, and has shown nothing of "
                                         "this")
        assert (answers[NUM].state, answers[NUM].offset) == (State.KNOWN, 8)


def test_another_source_that_says_the_same_is_believed(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DPORT, 12, "btf"), Offset.known(DPORT, 12, "guess")])
    answers = ask(db, kernel, DADDR, DPORT, verify=lambda kernel, offsets: {DADDR: False})
    assert list(answers) == [DPORT]
    assert (answers[DPORT].offset, answers[DPORT].evidence["recorded_source"]) == (12, "guess")


def test_a_memory_that_cannot_be_verified_is_not_trusted(db, kernel):
    def cannot(kernel, offsets):
        raise Unsupported("no BPF here")

    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.absent(COOKIE, "btf", "no such member")])
    answers = ask(db, kernel, DADDR, COOKIE, verify=cannot)
    assert {a.reason for a in answers.values()} == {"remembered, but it cannot be verified: no BPF here"}
    assert {a.state for a in answers.values()} == {State.UNKNOWN}
    assert not any(a.disputed for a in answers.values())


def test_without_verify_the_record_is_taken_as_it_stands(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf")])
    assert ask(db, kernel, DADDR, verify=None)[DADDR].offset == 0
    assert db.offsets(kernel)[0].verified_at is None


def test_a_read_only_memory_answers_and_refutes_without_writing(recorded, kernel):
    with Database.open(recorded, read_only=True) as db:
        answers = ask(db, kernel, DADDR, DPORT, verify=refute_daddr)
        assert list(answers) == [DPORT]
        assert not any(s.quarantined_at or s.verified_at for s in db.offsets(kernel))


def test_a_hit_counts_even_if_it_cannot_be_marked(db, kernel, monkeypatch, caplog):
    def full(kernel, fields):
        raise KcompatError("no space left")

    db.record(kernel, [Offset.known(DADDR, 0, "btf")])
    monkeypatch.setattr(db, "mark_verified", full)
    with caplog.at_level(logging.WARNING):
        assert ask(db, kernel, DADDR)[DADDR].offset == 0
    assert "not remembered: no space left" in caplog.text


@pytest.mark.parametrize(("modules", "hit"), [
    ({"nf_conntrack": "aa"}, True), ({"nf_conntrack": "bb"}, False), ({}, False)])
def test_a_field_of_a_module_needs_the_same_build_of_it(db, monkeypatch, modules, hit):
    status = Field("nf_conn", "status", "unsigned long", (8,), ("status",), "nf_conn", module="nf_conntrack")
    monkeypatch.setattr(rows, "find", {"nf_conn.status": status}.__getitem__)
    then, now = (Kernel("ab" * 20, "6.1", "Linux", "x86_64", m) for m in ({"nf_conntrack": "aa"}, modules))
    db.record(then, [Offset.known(status, 128, "btf")])
    assert (status in ask(db, now, status)) == hit


def test_what_the_kernels_own_debug_file_says_of_a_module_holds_with_the_module_loaded(db):
    status = find("nf_conn.status")
    harvested, running = (Kernel("ab" * 20, "6.1", "Linux", "x86_64", m) for m in ({}, {"nf_conntrack": "aa"}))
    db.record(harvested, [Offset.known(status, 128, "dwarf")])
    assert ask(db, running, status)[status].offset == 128
    db.record(running, [Offset.known(status, 136, "guess")])
    assert ask(db, running, status)[status].reason == "sources disagree: dwarf says 128, guess says 136"


def test_a_modules_debug_file_answers_for_that_build_of_it_alone(db):
    status = find("nf_conn.status")
    db.record(Kernel("release-6.1--x86_64", "6.1", "", "x86_64", {"nf_conntrack": "aa"}),
              [Offset.known(status, 128, "dwarf")])
    for build, given in (("aa", [128]), ("bb", [])):
        running = Kernel("ab" * 20, "6.1", "Linux", "x86_64", {"nf_conntrack": build})
        assert [o.offset for o in ask(db, running, status, verify=lambda kernel, offsets: {}).values()] == given


def test_what_an_import_says_of_the_release_is_given_once_an_event_has_shown_it(db, kernel):
    named = Kernel(f"release-{kernel.release}-ubuntu-18.04-x86_64", kernel.release, "", "x86_64")
    db.record(named, [Offset.known(f, at, "datadog") for f, at in ((DADDR, 0), (DPORT, 12), (COOKIE, 72))])
    answers = ask(db, kernel, DADDR, DPORT, COOKIE, verify=lambda kernel, offsets: {DADDR: True, DPORT: False})
    assert {f: (a.source, a.offset, a.verdict, a.evidence["tested"]) for f, a in answers.items()} == {
        DADDR: ("db", 0, Verdict.OK, True)}
    assert ask(db, kernel, DADDR, verify=None) == {}


def test_what_was_refuted_on_this_build_does_not_come_back_by_its_name(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf")])
    db.record(Kernel("cd" * 20, kernel.release, "", "x86_64"), [Offset.known(DADDR, 0, "btf")])
    db.quarantine(kernel, DADDR, "btf", "the canary says so")
    assert ask(db, kernel, DADDR) == {}


def test_another_builds_offset_is_given_only_for_the_same_release(db, kernel):
    other = Kernel("cd" * 20, "6.1.0-other", "Linux", "x86_64")
    db.record(other, [Offset.known(DADDR, 0, "btf")])
    assert ask(db, kernel, DADDR) == {}


def test_answers_for_two_builds_of_a_module_do_not_clash(db, monkeypatch):
    status = Field("nf_conn", "status", "unsigned long", (8,), ("status",), "nf_conn", module="nf_conntrack")
    monkeypatch.setattr(rows, "find", {"nf_conn.status": status}.__getitem__)
    old, new = (Kernel("ab" * 20, "6.1", "Linux", "x86_64", {"nf_conntrack": m}) for m in ("aa", "bb"))
    db.record(old, [Offset.known(status, 128, "btf")])
    db.record(new, [Offset.known(status, 136, "guess")])
    assert db.disagreements() == ()
    assert ask(db, new, status)[status].offset == 136


class Btf:
    """What a kernel's BTF says, which cannot be asked for less."""

    name = "btf"

    def resolve(self, kernel, wanted):
        return [Offset.known(f, {DADDR: 0, DPORT: 12}[f], "btf") for f in wanted]


def asked_behind(db, kernel, verify):
    memory = DatabaseResolver(db, verify)
    return resolve(kernel, [DADDR, DPORT], [memory, memory.unrefuted(Btf())]).offsets


@pytest.mark.parametrize("source", ["btf", "guess"])
def test_what_an_event_refuted_is_not_believed_of_the_next_source(db, kernel, source):
    db.record(kernel, [Offset.known(DADDR, 0, source), Offset.known(DPORT, 16, source)])
    # In the run of the event, and ever after.
    for verify in (lambda kernel, offsets: {DADDR: False, DPORT: False}, confirm):
        answers = asked_behind(db, kernel, verify)
        assert (answers[DADDR].state, answers[DADDR].reason) == (State.UNKNOWN, "btf says 0, which was refuted before")
        assert (answers[DPORT].state, answers[DPORT].offset) == (State.KNOWN, 12)


def test_nor_is_it_where_the_memory_cannot_be_written(recorded, kernel):
    with Database.open(recorded, read_only=True) as db:
        assert asked_behind(db, kernel, refute_daddr)[DADDR].state is State.UNKNOWN


def test_a_guess_may_find_what_was_refuted(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf")])
    memory, guess = DatabaseResolver(db, refute_daddr), Btf()
    offsets = resolve(kernel, [DADDR], [memory, memory.unrefuted(Btf()), guess]).offsets
    assert offsets[DADDR].offset == 0


def test_who_knew_nothing_was_not_refuted(db, kernel):
    """The canary's blame falls on all who spoke of the field."""
    db.record(kernel, [Offset.unknown(DADDR, "dwarf", "no such struct"), Offset.known(DPORT, 12, "btf")])
    db.quarantine(kernel, DADDR, "dwarf", "the canary says so")
    silent = Btf()
    silent.resolve = lambda kernel, wanted: [Offset.unknown(f, "btf", "not in it") for f in wanted]
    memory = DatabaseResolver(db, confirm)
    assert resolve(kernel, [DADDR], [memory, memory.unrefuted(silent)]).offsets[DADDR].reason == "not in it"


def test_what_was_refuted_of_another_build_of_a_module_is_not_meant(db):
    status = find("nf_conn.status")
    then, now = (Kernel("ab" * 20, "6.1", "Linux", "x86_64", {"nf_conntrack": build}) for build in ("aa", "bb"))
    db.record(then, [Offset.known(status, 128, "btf")])
    db.quarantine(then, status, "btf", "wrong")
    says = Btf()
    says.resolve = lambda kernel, wanted: [Offset.known(status, 128, "btf")]
    for running, state in ((then, State.UNKNOWN), (now, State.KNOWN)):
        memory = DatabaseResolver(db, confirm)
        assert resolve(running, [status], [memory, memory.unrefuted(says)]).offsets[status].state is state


@pytest.mark.parametrize(("verify", "given"), [
    (lambda kernel, offsets: {}, None), (None, None), (confirm, 0), (lambda kernel, offsets: {DADDR: False}, ...)])
def test_what_a_source_said_elsewhere_disputes_what_it_says_here_unless_an_event_decides(db, kernel, verify, given):
    db.record(kernel, [Offset.known(DADDR, 0, "guess"), Offset.known(DADDR, 4, "guess elsewhere 2"),
                       Offset.known(DPORT, 12, "guess"), Offset.known(DPORT, 16, "datadog")])
    answers = ask(db, kernel, DADDR, DPORT, verify=verify)
    if given is None:
        assert (answers[DADDR].state, answers[DADDR].disputed) == (State.UNKNOWN, True)
        assert answers[DADDR].reason == "sources disagree: guess says 0, guess elsewhere 2 says 4"
    else:
        assert (answers[DADDR].offset if DADDR in answers else ...) == given
    assert answers[DPORT].offset == 12 or given is ...  # whoever is refuted is doubted


def test_what_was_said_elsewhere_and_is_refuted_disputes_nothing(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "guess"), Offset.known(DADDR, 4, "guess elsewhere")])
    db.quarantine(kernel, DADDR, "guess elsewhere", "wrong")
    assert ask(db, kernel, DADDR, verify=lambda kernel, offsets: {})[DADDR].offset == 0


def test_a_guess_of_no_build_of_a_module_does_not_hold_for_one_that_is_loaded(db):
    status = find("nf_conn.status")
    before, loaded = (Kernel("ab" * 20, "6.1", "Linux", "x86_64", m) for m in ({}, {"nf_conntrack": "aa"}))
    db.record(before, [Offset.known(status, 128, "guess")])
    assert ask(db, before, status)[status].offset == 128  # it is no module there
    assert ask(db, loaded, status) == {}


@pytest.mark.parametrize("held", [
    Offset.known(find("sk_protocol"), 541, "btf", width=1), Offset.known(find("sk_protocol"), 541, "btf", width=2),
    Offset.known(find("sk_type"), 538, "btf", width=1, bit_offset=3, bit_size=5)])
def test_each_width_of_a_field_answers_and_so_does_a_bitfield(db, kernel, held):
    db.record(kernel, [held])
    answer = ask(db, kernel, held.field)[held.field]
    assert (answer.offset, answer.width, answer.bit_offset) == (held.offset, held.width, held.bit_offset)


def test_a_width_that_is_not_the_fields_is_not_believed_of_the_release_either(db, kernel):
    db.record(Kernel("cd" * 20, kernel.release, "", "x86_64"), [Offset.known(DADDR, 0, "btf", width=1)])
    assert ask(db, kernel, DADDR) == {}


def test_a_remembered_absence_that_the_kernel_contradicts_is_quarantined(db, kernel):
    db.record(kernel, [Offset.absent(COOKIE, "guess", "the configuration says so"), Offset.known(DPORT, 12, "btf")])
    answers = ask(db, kernel, COOKIE, DPORT, verify=lambda kernel, offsets: {COOKIE: False, DPORT: True})
    assert list(answers) == [DPORT]
    assert {s.offset.field for s in db.offsets(kernel) if s.quarantined_at} == {COOKIE}
