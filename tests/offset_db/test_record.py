"""What is recorded is read back, and recording again does what it should."""

import itertools
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcompat.errors import KcompatError
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State, Verdict
from offset_db import migrations
from offset_db.connection import SCHEMA_VERSION
from offset_db.db import Database
from offset_db.files import default_path
from offset_db.rows import Window

DADDR, DPORT, SK_TYPE = find("skc_daddr"), find("skc_dport"), find("sk_type")
places = st.integers(0, 2**63 - 1)
json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.text(),
                           lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@st.composite
def offsets(draw):
    state = draw(st.sampled_from(State))
    return Offset(
        draw(st.sampled_from(CATALOGUE)), state, draw(st.sampled_from(["btf", "dwarf", "guess", "somewhere else"])),
        offset=draw(places) if state is State.KNOWN else None, width=draw(st.none() | st.integers(1, 4096)),
        bit_offset=draw(st.none() | st.integers(0, 7)), bit_size=draw(st.none() | st.integers(1, 32)),
        verdict=draw(st.sampled_from(Verdict)), confidence=draw(st.floats(0, 1)),
        candidates=tuple(draw(st.lists(places, max_size=4))), reason=draw(st.none() | st.text()),
        evidence=draw(st.dictionaries(st.text(), json_values, max_size=3)))


def held(db, kernel):
    return {(s.offset.field.name, s.offset.source): s.offset for s in db.offsets(kernel)}


builds = (Kernel(f"{n:040x}", "6.1", "Linux", "x86_64") for n in itertools.count())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(offsets(), unique_by=lambda o: (o.field, o.source)))
def test_what_is_recorded_is_read_back(db, given_offsets):
    kernel = next(builds)
    db.record(kernel, given_offsets)
    assert held(db, kernel) == {(o.field.name, o.source): o for o in given_offsets}


def test_it_is_there_for_the_next_process_too(recorded, kernel, answers):
    with Database.open(recorded) as db:
        assert {s.offset.field: s.offset for s in db.offsets(kernel)} == {o.field: o for o in answers}


@pytest.mark.parametrize("build_id", ["cd" * 20, None])
def test_a_kernel_comes_back_as_it_was(db, answers, build_id):
    kernel = Kernel(build_id, "6.1", "Linux version 6.1 (gcc)", "aarch64", {"nf_conntrack": "ef" * 20})
    db.record(kernel, answers)
    assert db.kernels() == (kernel,)
    assert len(db.offsets(kernel)) == len(answers)


def test_recording_again_replaces(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "guess", confidence=0.5)])
    db.record(kernel, [Offset.known(DADDR, 4, "guess", confidence=0.9)])
    (stored,) = db.offsets(kernel)
    assert (stored.offset.offset, stored.offset.confidence) == (4, 0.9)


def test_a_source_that_finds_nothing_today_does_not_undo_what_it_found(db, kernel):
    found = Offset.known(DADDR, 0, "guess")
    db.record(kernel, [found])
    db.record(kernel, [Offset.unknown(DADDR, "guess", "not root")])
    assert held(db, kernel) == {("sock_common.skc_daddr", "guess"): found}


def test_what_came_out_of_the_memory_is_not_recorded(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "db"), Offset.unknown(DPORT, "none", "no source knows it")])
    assert db.offsets(kernel) == ()


def test_odd_evidence_does_not_cost_the_answer(db, kernel, tmp_path):
    db.record(kernel, [Offset.known(DADDR, 0, "dwarf", evidence={"file": tmp_path})])
    assert db.offsets(kernel)[0].offset.evidence == {"file": str(tmp_path)}


def test_a_field_from_another_catalogue_is_passed_over(db, kernel, answers, path):
    db.record(kernel, answers)
    with sqlite3.connect(path) as other:
        other.execute("UPDATE offset SET field = 'sock.sk_of_tomorrow' WHERE field = 'sock.sk_type'")
    assert {s.offset.field for s in db.offsets(kernel)} == set(CATALOGUE) - {SK_TYPE}


def test_windows_are_kept_byte_for_byte(db, kernel):
    windows = [Window("run-1", "sock", "tcp_v4_connect", bytes(range(256)), {"skc_dport": 443}),
               Window("run-1", "net", "tcp_v4_connect", b"")]
    db.record(kernel, [], windows)
    assert list(db.windows(kernel)) == windows


def test_nothing_is_recorded_when_part_of_it_cannot_be(db, kernel, answers):
    with pytest.raises(sqlite3.IntegrityError):
        db.record(kernel, answers, [Window("run", "sock", "hook", data=None)])
    assert db.kernels() == ()
    db.record(kernel, answers)
    assert len(db.offsets(kernel)) == len(answers)


def test_show_finds_builds_by_key_and_by_release(db, answers):
    builds = [Kernel(c * 40, "6.1.0-7", "Linux", "x86_64") for c in "ab"]
    for kernel in builds:
        db.record(kernel, answers[:2])
    assert [r.kernel for r in db.show("6.1.0-7")] == builds
    assert [(r.kernel, len(r.stored)) for r in db.show("b" * 40)] == [(builds[1], 2)]
    assert db.show("6.2") == ()


def test_quarantine_keeps_the_row_and_repeating_a_refuted_claim_does_not_free_it(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf")])
    db.quarantine(kernel, DADDR, "btf", "the canary saw another address")
    db.record(kernel, [Offset.known(DADDR, 0, "btf")])
    (stored,) = db.offsets(kernel)
    assert stored.quarantined_at and stored.quarantine_reason == "the canary saw another address"
    db.record(kernel, [Offset.known(DADDR, 4, "btf")])
    assert db.offsets(kernel)[0].quarantined_at is None


def test_release_takes_it_out_of_quarantine(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf")])
    db.quarantine(kernel, DADDR, "btf", "false alarm")
    db.release(kernel, DADDR, "btf")
    (stored,) = db.offsets(kernel)
    assert (stored.quarantined_at, stored.quarantine_reason) == (None, None)


def test_quarantine_of_an_answer_nobody_gave_says_so(db, kernel):
    with pytest.raises(KcompatError, match=r"no answer from 'btf' for sock_common\.skc_daddr of 6\.1"):
        db.quarantine(kernel, DADDR, "btf", "wrong")


def test_mark_verified_marks_the_known_and_not_the_refuted(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DADDR, 4, "guess"), Offset.known(DPORT, 12, "btf")])
    db.quarantine(kernel, DADDR, "guess", "wrong")
    db.mark_verified(kernel, [Offset.known(DADDR, 0, "db")])
    verified = {(s.offset.field, s.offset.source) for s in db.offsets(kernel) if s.verified_at}
    assert verified == {(DADDR, "btf")}


def test_mark_verified_marks_what_the_event_saw_and_no_other_place(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DADDR, 0, "guess"),
                       Offset.known(DADDR, 4, "guess elsewhere"), Offset.known(SK_TYPE, 516, "btf", bit_offset=0),
                       Offset.known(SK_TYPE, 516, "guess", bit_offset=4)])
    db.mark_verified(kernel, [Offset.known(DADDR, 0, "db"), Offset.known(SK_TYPE, 516, "db", bit_offset=4)])
    verified = {(s.offset.field, s.offset.source) for s in db.offsets(kernel) if s.verified_at}
    assert verified == {(DADDR, "btf"), (DADDR, "guess"), (SK_TYPE, "guess")}


def test_disagreements_name_both_sides(db, kernel):
    mine, theirs = Offset.known(SK_TYPE, 516, "btf", bit_offset=0), Offset.known(SK_TYPE, 516, "guess", bit_offset=4)
    agreed = [Offset.known(DADDR, 0, s, width=w) for s, w in (("btf", 4), ("guess", 8))]
    db.record(kernel, [mine, theirs, *agreed, Offset.unknown(DADDR, "dwarf", "no file")])
    (found,) = db.disagreements()
    assert (found.kernel, found.field, found.answers) == (kernel, SK_TYPE, {"btf": mine, "guess": theirs})


def test_absent_against_known_is_a_disagreement_until_one_is_refuted(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.absent(DADDR, "guess", "nothing stands there")])
    assert len(db.disagreements()) == 1
    db.quarantine(kernel, DADDR, "guess", "it does")
    assert db.disagreements() == ()


def test_a_hit_does_not_pay_for_importing_sqlite_utils(recorded):
    code = ("import sys; from kcompat.kernel import Kernel; from offset_db.db import Database\n"
            "with Database.open(sys.argv[1]) as db: assert db.offsets(Kernel('ab' * 20, '', '', ''))\n"
            "assert 'sqlite_utils' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, str(recorded)], check=True, timeout=60)


def test_the_schema_version_counts_the_migrations(db):
    from sqlite_utils import Database as SqliteUtils

    applied = migrations.migrations.applied(SqliteUtils(db.path))
    assert len(applied) == SCHEMA_VERSION == len(migrations.migrations._migrations)


@pytest.mark.parametrize(("uid", "data_home", "expected"), [
    (0, "/data", "/var/lib/kcompat/offsets.db"),
    (1000, "/data", "/data/kcompat/offsets.db"),
    (1000, "relative", "/home/me/.local/share/kcompat/offsets.db"),
    (1000, "", "/home/me/.local/share/kcompat/offsets.db"),
])
def test_default_path(monkeypatch, uid, data_home, expected):
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setenv("XDG_DATA_HOME", data_home)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(default_path()) == expected
