"""A damaged file is moved aside, never deleted, and the memory starts afresh; a sound file of others is left alone."""

import logging
import random
import sqlite3

import pytest

from kcompat.errors import BadInput
from kcompat.fields import CATALOGUE
from kcompat.offsets import Offset
from offset_db.connection import SCHEMA_VERSION
from offset_db.db import Database


def bad_header(raw):
    return b"SQLite format 4\0" + raw[16:]


def page_garbage(raw):
    return raw[:4096] + random.Random(1).randbytes(len(raw) - 4096)


def half_of_it(raw):
    return raw[:len(raw) // 2]


def a_few_bytes(raw):
    return raw[:50]


def not_sqlite(raw):
    return b"offset = 12\n" * 1000


def no_schema(raw):
    return raw[:100] + bytes(4096 - 100) + raw[4096:]


SIDECARS = ("-wal", "-shm")
FOREIGN = [bad_header, not_sqlite]
DAMAGE = [page_garbage, half_of_it, a_few_bytes, no_schema]


def damaged(path, damage):
    raw = damage(path.read_bytes())
    path.write_bytes(raw)
    return raw


def aside(path, suffix=""):
    return [p for p in path.parent.glob(f"{path.name}.corrupt-*{suffix}") if suffix or p.name[-4:] not in SIDECARS]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_moved_aside(recorded, kernel, answers, damage, caplog):
    raw = damaged(recorded, damage)
    with Database.open(recorded) as db:
        assert db.offsets(kernel) == ()
        db.record(kernel, answers)
        assert len(db.offsets(kernel)) == len(answers)
    (moved,) = aside(recorded)
    assert moved.read_bytes() == raw
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert str(recorded) in warning and str(moved) in warning


@pytest.mark.parametrize("damage", DAMAGE)
def test_recording_into_a_damaged_file_is_not_lost(recorded, kernel, answers, damage):
    damaged(recorded, damage)
    with Database.open(recorded) as db:
        db.record(kernel, answers)
    with Database.open(recorded) as db:
        assert len(db.offsets(kernel)) == len(answers)
    assert len(aside(recorded)) == 1


@pytest.mark.parametrize("damage", FOREIGN)
def test_a_file_that_does_not_begin_as_a_database_is_left_alone(recorded, damage):
    raw = damaged(recorded, damage)
    with pytest.raises(BadInput, match=r"not an SQLite database; left alone"):
        Database.open(recorded)
    assert recorded.read_bytes() == raw and aside(recorded) == []


@pytest.mark.parametrize("damage", DAMAGE + FOREIGN)
def test_read_only_a_damaged_file_is_bad_input_and_stays(recorded, kernel, damage):
    raw = damaged(recorded, damage)
    with pytest.raises(BadInput, match=r"offsets\.db: \w+"), Database.open(recorded, read_only=True) as db:
        db.offsets(kernel)
    assert recorded.read_bytes() == raw and aside(recorded) == []


def test_the_wal_goes_aside_with_its_file(recorded, kernel, start_writer):
    child = start_writer(recorded, "btf", "0-1000")
    child.stdout.readline()
    child.kill()
    child.wait()
    wal = recorded.with_name("offsets.db-wal")
    # Both: SQLite would mend the one from the other.
    recorded.write_bytes(b"SQLite format 3\0" + b"garbage" * 1000)
    wal.write_bytes(b"garbage" * 1000)
    with Database.open(recorded) as db:
        assert db.offsets(kernel) == ()
    assert [p.read_bytes()[-7000:] for p in aside(recorded) + aside(recorded, "-wal")] == [b"garbage" * 1000] * 2


def test_a_row_no_kcompat_wrote_is_damage(recorded, kernel):
    with sqlite3.connect(recorded) as other:
        other.execute("PRAGMA ignore_check_constraints = ON")
        other.execute("UPDATE offset SET state = 'perhaps', value = NULL WHERE field = 'sock.sk_type'")
    with Database.open(recorded) as db:
        assert db.offsets(kernel) == ()
    assert len(aside(recorded)) == 1


def test_a_row_that_is_not_text_is_damage(recorded, kernel):
    raw = recorded.read_bytes()
    recorded.write_bytes(raw.replace(b'{"type_id": 7}', b'{"type_\xff\xfe": ?}'))
    with Database.open(recorded) as db:
        assert db.offsets(kernel) == ()
    assert len(aside(recorded)) == 1


def test_two_that_find_the_same_damage_move_it_once(recorded, kernel, answers):
    with Database.open(recorded) as first, Database.open(recorded) as second:
        with recorded.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xee" * (recorded.stat().st_size - 4096))
        assert first.offsets(kernel) == ()
        first.record(kernel, answers[:5])
        second.record(kernel, answers[5:])
        assert len(first.offsets(kernel)) == len(answers)
    with Database.open(recorded) as db:
        assert len(db.offsets(kernel)) == len(answers)
    assert len(aside(recorded)) == 1


def test_an_empty_file_becomes_a_database(path, kernel, answers):
    path.touch()
    with Database.open(path) as db:
        db.record(kernel, answers)
        assert len(db.offsets(kernel)) == len(answers)
    assert aside(path) == []


def test_an_empty_file_is_bad_input_read_only(path):
    path.touch()
    with pytest.raises(BadInput, match="has schema 0"):
        Database.open(path, read_only=True)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_of_a_newer_kcompat_is_refused(recorded, read_only):
    with sqlite3.connect(recorded) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(BadInput, match=r"newer kcompat \(schema \d+, this one knows \d+\): upgrade kcompat"):
        Database.open(recorded, read_only=read_only)
    assert aside(recorded) == []


@pytest.mark.parametrize("read_only", [False, True])
def test_a_database_of_another_program_is_left_alone(path, read_only):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url)")
    before = path.read_bytes()
    with pytest.raises(BadInput, match="not one of kcompat's"):
        Database.open(path, read_only=read_only)
    assert path.read_bytes() == before and aside(path) == []


def test_a_directory_and_a_device_are_refused(tmp_path):
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(BadInput, match="not a regular file"):
            Database.open(path)


def test_a_copy_that_left_wal_mode_gets_it_back(recorded, tmp_path, kernel):
    copy = tmp_path / "copy.db"
    with sqlite3.connect(recorded) as other:
        other.execute("VACUUM INTO ?", (str(copy),))
    with Database.open(copy) as db, sqlite3.connect(copy) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        db.record(kernel, [Offset.known(CATALOGUE[0], 99, "guess")])
