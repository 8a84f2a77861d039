"""A harvest as a whole: which files it takes, what it remembers of them, and what it does when workers die."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kcompat.errors import Missing
from kcompat.fields import CATALOGUE, find
from offset_db import harvest_cluster
from offset_db.db import Database
from offset_db.harvest import harvest
from offset_db.harvest_paths import Candidate, candidates, listed
from tests.kcompat.cli_tools import COMMAND, ROOT, environment
from tests.offset_db.harvest_samples import btf, vmlinux

DPORT = find("sock_common.skc_dport")


def fleet(directory, count, filler=0):
    """BTF files of that many different kernels."""
    directory.mkdir(exist_ok=True)
    for n in range(count):
        (directory / f"5.{n}.0.x86_64.btf").write_bytes(btf(dport=40 + 8 * n, filler=filler))
    return directory


def run(db, *paths, jobs=2, scheduler=None):
    """path name -> (ending, reasons)."""
    return {Path(p.outcome.path).name: (p.outcome.ending, p.outcome.reasons)
            for p in harvest(map(str, paths), db, jobs, scheduler)}


def recorded(db):
    """release -> where the field lies there."""
    with Database.open(db) as memory:
        return {k.release: next(s.offset.offset for s in memory.offsets(k) if s.offset.field == DPORT)
                for k in memory.kernels()}


def names(*paths):
    return [c.path.name if isinstance(c, Candidate) else str(c) for c in candidates(map(str, paths))]


def test_directories_are_searched_and_a_loop_is_one_line(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")

    assert names(tmp_path) == ["file", f"{tmp_path}/a/b/up: a directory loop: it leads back to a directory above it"]


def test_the_database_itself_is_no_file_of_its_directory(tmp_path, monkeypatch):
    for name in ("fleet.db", "fleet.db-wal", "fleet.db-shm", "other.db"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def left(*paths):
        return [c.path.name for c in candidates(paths, Path("fleet.db"))]

    assert left(".") == ["other.db"]
    assert left("fleet.db", ".") == ["fleet.db", "other.db"]


def test_a_file_is_taken_once_however_often_it_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")

    assert names(tmp_path, tmp_path / "file", tmp_path / "*") == ["file"]


def test_globs_and_what_is_not_there(tmp_path):
    (tmp_path / "[1].btf").touch()
    (tmp_path / "2.btf").touch()
    os.mkfifo(tmp_path / "fifo")

    assert names(tmp_path / "[1].btf") == ["[1].btf"]
    assert names(tmp_path / "?.btf") == ["2.btf"]
    assert names(tmp_path / "*.deb") == [f"{tmp_path}/*.deb: no file matches"]
    assert "neither" in names(tmp_path / "fifo")[0] and "No such file" in names(tmp_path / "gone")[0]


def test_lists_of_paths_with_line_ends_or_nuls():
    assert listed(b"a\n\nb c\n") == ["a", "b c"]
    assert listed(b"a\nb\0c\0") == ["a\nb", "c"]


def test_few_files_need_no_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(harvest_cluster, "_client", None)

    assert set(run(tmp_path / "db", fleet(tmp_path / "f", 2)).values()) == {("done", ())}
    assert recorded(tmp_path / "db") == {"5.0.0.x86_64": 40, "5.1.0.x86_64": 48}


def test_what_was_harvested_is_known_until_it_changes(tmp_path):
    files, db = fleet(tmp_path / "f", 2), tmp_path / "db"
    run(db, files)
    again = run(db, files)
    (files / "5.0.0.x86_64.btf").write_bytes(btf(dport=56))
    changed = run(db, files)

    assert set(again.values()) == {("known", ())}
    assert changed == {"5.0.0.x86_64.btf": ("done", ()), "5.1.0.x86_64.btf": ("known", ())}


def test_another_catalogue_looks_again(tmp_path, monkeypatch):
    files, db = fleet(tmp_path / "f", 1), tmp_path / "db"
    run(db, files)
    monkeypatch.setattr("offset_db.harvest_ledger.LOOKED_FOR", "other fields")

    assert run(db, files) == {"5.0.0.x86_64.btf": ("done", ())}


def test_what_an_event_refuted_stays_refuted_when_its_file_is_read_again(tmp_path):
    files, db = fleet(tmp_path / "f", 1), tmp_path / "db"
    run(db, files)
    with Database.open(db) as memory:
        (kernel,) = memory.kernels()
        memory.quarantine(kernel, DPORT, "btf", "an event saw another")
    os.utime(files / "5.0.0.x86_64.btf", (1, 1))

    assert run(db, files) == {"5.0.0.x86_64.btf": ("done", ())}
    with Database.open(db) as memory:
        assert {s.offset.field.name: s.quarantine_reason for s in memory.offsets(kernel)} == {
            "sock_common.skc_daddr": None, "sock_common.skc_dport": "an event saw another"} | dict.fromkeys(
                f.name for f in CATALOGUE if f.struct == "sock_common" and f.member not in ("skc_daddr", "skc_dport"))


def test_rows_of_another_kcompat_are_not_written(tmp_path, monkeypatch):
    files, db = fleet(tmp_path / "f", 3), tmp_path / "db"
    monkeypatch.setattr(harvest_cluster, "SHAPE", "another")

    outcomes = run(db, files)

    assert {ending for ending, _ in outcomes.values()} == {"failed"} and recorded(db) == {}
    assert {reason for _, reasons in outcomes.values() for reason in reasons} == {
        "the worker that read it runs another version of kcompat"}


def test_a_failed_file_is_tried_again(tmp_path):
    path, db = tmp_path / "k.btf", tmp_path / "db"
    path.write_bytes(btf()[:50])
    assert run(db, path)["k.btf"][0] == run(db, path)["k.btf"][0] == "failed"


def test_a_foreign_file_matters_only_if_it_was_named(tmp_path):
    (tmp_path / "notes.txt").write_text("text")

    assert run(tmp_path / "db", tmp_path / "notes.txt")["notes.txt"][0] == "failed"
    assert run(tmp_path / "db", tmp_path)["notes.txt"][0] == "skipped"


def deadly():
    """read(), but one file kills whoever reads it. Local, so that it travels to the workers by value."""
    def read(path):
        import os

        from offset_db.harvest_file import read

        if path.name == "poison":
            os.kill(os.getpid(), 9)
        return read(path)

    return read


def test_a_file_that_kills_its_worker_costs_only_itself(tmp_path, monkeypatch):
    files, db = fleet(tmp_path / "f", 12), tmp_path / "db"
    (files / "poison").write_bytes(vmlinux())
    monkeypatch.setattr(harvest_cluster, "read", deadly())
    outcomes = run(db, files)

    ending, reasons = outcomes.pop("poison")
    assert ending == "failed" and "died" in reasons[0]
    assert set(outcomes.values()) == {("done", ())} and len(recorded(db)) == 12


def test_files_in_one_message_share_no_fate(tmp_path, monkeypatch):
    files, db = fleet(tmp_path / "f", 12), tmp_path / "db"
    (files / "poison").write_bytes(vmlinux())
    monkeypatch.setattr(harvest_cluster, "read", deadly())
    monkeypatch.setattr(harvest_cluster, "_MESSAGES", 1)
    outcomes = run(db, files)

    assert outcomes.pop("poison")[0] == "failed"
    assert set(outcomes.values()) == {("done", ())} and len(recorded(db)) == 12


def test_a_scheduler_elsewhere_is_used_and_one_that_is_not_there_is_said(tmp_path):
    from distributed import LocalCluster

    files, db = fleet(tmp_path / "f", 3), tmp_path / "db"
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0",
                      local_directory=str(tmp_path), protocol="tcp://") as cluster:
        done = run(db, files, scheduler=cluster.scheduler_address)
    assert len(recorded(db)) == 3 and set(done.values()) == {("done", ())}

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkey = pytest.MonkeyPatch()
    monkey.setattr(harvest_cluster, "_CONNECT_S", 1)
    with pytest.raises(Missing, match="no Dask scheduler answers"):
        run(tmp_path / "other", files, scheduler=f"tcp://127.0.0.1:{port}")
    monkey.undo()


def started(directory, files, db):
    env = environment(directory) | {"TMPDIR": str(directory / "tmp")}
    (directory / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen([*COMMAND, "--db", str(db), "harvest", str(files), "--jobs", "2"], cwd=ROOT, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_kernels(db, count, process):
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        if db.exists() and len(found := recorded(db)) >= count:
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {count} kernels: {process.communicate()}")


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_harvest_keeps_what_was_committed_and_goes_on(tmp_path, number, status):
    files, db = fleet(tmp_path / "f", 60, filler=150_000), tmp_path / "db"
    process = started(tmp_path, files, db)
    seen = wait_for_kernels(db, 5, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)

    assert process.returncode == status and "Traceback" not in err, err
    kept = recorded(db)
    assert kept.items() >= seen.items() and len(kept) < 60
    if number != signal.SIGKILL:
        assert not list((tmp_path / "tmp").iterdir()) and "the same command goes on" in err
    again = [ending for ending, _ in run(db, files).values()]
    # At most the file whose kernel was committed when its line in the ledger was not.
    assert again.count("known") >= len(kept) - 1 and again.count("done") == 60 - again.count("known")
    assert recorded(db) == {f"5.{n}.0.x86_64": 40 + 8 * n for n in range(60)}


def test_workers_end_with_a_killed_harvest(tmp_path):
    process = started(tmp_path, fleet(tmp_path / "f", 60, filler=150_000), tmp_path / "db")
    wait_for_kernels(tmp_path / "db", 1, process)
    workers = children(process.pid)
    process.kill()
    process.communicate(timeout=100)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)

    assert workers and not any(alive(pid) for pid in workers)


def children(pid):
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_importing_the_command_imports_no_dask():
    code = "import sys, kcompat.cli, offset_db.harvest; sys.exit('distributed' in sys.modules or 'dask' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
