"""Killed writers, writers at once, a full disk, a directory that cannot be written: nothing committed is lost."""

import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from kcompat.errors import KcompatError, Missing
from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db.db import Database
from offset_db.rows import Window


def check_integrity(path):
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def sources_of(db, number):
    """source -> how many fields it has answered for that kernel, all of them right."""
    stored = db.offsets(Kernel(f"{number:040x}", "", "", ""))
    counts = {}
    for s in stored:
        assert s.offset.offset == number + CATALOGUE.index(s.offset.field)
        counts[s.offset.source] = counts.get(s.offset.source, 0) + 1
    return counts


def test_what_a_killed_writer_had_committed_is_there(path, start_writer):
    rng = random.Random(1)
    reported = 0
    for _ in range(8):
        child = start_writer(path, "btf", f"{reported}-1000000")
        assert child.stdout.readline()
        time.sleep(rng.uniform(0, 0.2))
        child.kill()
        reported = max([reported, *(int(line) + 1 for line in child.stdout.read().splitlines())])
        with Database.open(path) as db:
            assert all(sources_of(db, n) == {"btf": len(CATALOGUE)} for n in range(reported))
        check_integrity(path)
    assert reported > 8


def test_writers_at_once_lose_nothing(path, start_writer):
    jobs = [("btf", "0-60"), ("guess", "0-60"), ("dwarf", "30-90"), ("btf", "60-120")]
    children = [start_writer(path, *job) for job in jobs]
    assert [len(child.communicate(timeout=120)[0].split()) for child in children] == [60, 60, 60, 60]
    assert [child.returncode for child in children] == [0, 0, 0, 0]
    with Database.open(path) as db:
        for n in range(120):
            expected = {source for source, span in jobs if n in range(*map(int, span.split("-")))}
            assert sources_of(db, n) == dict.fromkeys(expected, len(CATALOGUE))
        assert len(db.windows(Kernel(f"{45:040x}", "", "", ""))) == 3
    check_integrity(path)


def test_a_writer_waits_for_another(db, path, start_writer):
    with sqlite3.connect(path, isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        child = start_writer(path, "btf", "0-1")
        time.sleep(1)
        assert child.poll() is None
        holder.execute("ROLLBACK")
    assert child.communicate(timeout=60)[0] == "0\n"


def test_a_writer_does_not_wait_for_ever(db, kernel, path, monkeypatch):
    monkeypatch.setattr("offset_db.db._UNIMPORTANT_DEADLINE_S", 0.1)
    with sqlite3.connect(path, isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(KcompatError, match="another process holds it"):
            db.mark_verified(kernel, [Offset.known(CATALOGUE[0], 0, "btf")])


def test_a_full_disk_is_one_clear_error_and_costs_nothing_committed(mounted, answers):
    path = mounted("-t", "tmpfs", "-o", "size=256k", "none") / "offsets.db"
    done = []
    with Database.open(path) as db, pytest.raises(KcompatError, match=r"no space left|disk full") as caught:
        for n in range(1000):
            done.append(Kernel(f"{n:040x}", "6.1", "Linux", "x86_64"))
            db.record(done[-1], answers)
    assert "\n" not in str(caught.value) and len(done) > 2
    with Database.open(path) as db:
        assert [len(db.offsets(k)) for k in done] == [len(answers)] * (len(done) - 1) + [0]
    subprocess.run(["mount", "-o", "remount,size=1m", path.parent], check=True)
    with Database.open(path) as db:
        db.record(done[-1], answers)
        assert len(db.offsets(done[-1])) == len(answers)
    check_integrity(path)


def test_a_disk_too_full_for_a_database_is_one_clear_error(mounted):
    directory = mounted("-t", "tmpfs", "-o", "size=16k", "none")
    with pytest.raises(KcompatError, match=r"offsets\.db: .*(no space left|disk full)"):
        Database.open(directory / "offsets.db")


def test_a_file_deleted_while_open_is_made_anew(db, kernel, answers, path):
    db.record(kernel, answers)
    for left in path.parent.glob("offsets.db*"):
        left.unlink()
    db.record(kernel, answers[:3])
    with Database.open(path) as other:
        assert len(other.offsets(kernel)) == 3


def test_the_file_is_for_its_owner_only(recorded):
    assert recorded.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("left_by", ["a clean close", "a killed writer"])
def test_a_read_only_file_system_is_readable(mounted, recorded, kernel, answers, start_writer, left_by):
    if left_by == "a killed writer":
        child = start_writer(recorded, "btf", "0-1000")
        child.stdout.readline()
        child.kill()
        child.wait()
        assert recorded.with_name("offsets.db-wal").stat().st_size
    seen = mounted("--bind", str(recorded.parent)) / "offsets.db"
    subprocess.run(["mount", "-o", "remount,ro,bind", seen.parent], check=True)
    with Database.open(seen) as db:
        assert db.read_only
        assert len(db.offsets(kernel)) == len(answers)
        assert left_by == "a clean close" or sources_of(db, 0) == {"btf": len(CATALOGUE)}
        with pytest.raises(Missing, match="read-only, so nothing can be recorded; run as root"):
            db.record(kernel, answers)


def test_a_wal_that_cannot_be_read_is_not_ignored(mounted, recorded, start_writer):
    child = start_writer(recorded, "btf", "0-1000")
    child.stdout.readline()
    child.kill()
    child.wait()
    recorded.with_name("offsets.db-shm").unlink()
    seen = mounted("--bind", str(recorded.parent)) / "offsets.db"
    subprocess.run(["mount", "-o", "remount,ro,bind", seen.parent], check=True)
    with pytest.raises(Missing, match=r"offsets\.db"):
        Database.open(seen)


@pytest.fixture
def others_directory():
    """A directory any user may look into, and nobody but us may write."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


def as_another_user(directory, work):
    """Run `work` without the right to write `directory`: root bypasses permissions, so as nobody, in a child."""
    directory.chmod(0o555)
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("writer_lives", [False, True])
def test_another_user_may_read_what_its_owner_shares(others_directory, kernel, answers, writer_lives):
    path = others_directory / "offsets.db"
    writer = Database.open(path)
    writer.record(kernel, answers)
    for shared in others_directory.iterdir():
        shared.chmod(0o444)
    if not writer_lives:
        writer.close()

    def read():
        with Database.open(path) as db:
            assert db.read_only and len(db.offsets(kernel)) == len(answers)

    as_another_user(others_directory, read)
    writer.close()


def test_where_no_file_can_be_made_it_says_what_to_do(others_directory):
    def refuse():
        for path in (others_directory / "offsets.db", others_directory / "deep" / "offsets.db"):
            with pytest.raises(Missing, match=r"offsets\.db: Permission denied.*run as root or name a file"):
                Database.open(path)

    as_another_user(others_directory, refuse)


def test_read_only_needs_a_file(path):
    with pytest.raises(Missing, match=r"offsets\.db"):
        Database.open(path, read_only=True)
    assert not path.exists()


def test_an_unwritable_file_is_not_reported_as_recorded(recorded, kernel, answers):
    with Database.open(recorded, read_only=True) as db, pytest.raises(Missing):
        db.record(kernel, [Offset.known(CATALOGUE[0], 99, "guess")], [Window("r", "o", "h", b"")])
    with Database.open(recorded) as db:
        assert {s.offset.offset for s in db.offsets(kernel)} == {o.offset for o in answers}
