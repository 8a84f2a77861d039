"""Which files are hooked, and that it is the files which were read; their contents are made up."""

import os
import shutil
import threading

import pytest

from collector import tls_libraries
from collector.mapped_files import edition
from collector.tls_hooks import Hook
from collector.tls_libraries import TlsLibraries
from kcompat.attach import Attachment


class Loaded:
    """Remembers what is attached where, and what that file says; `ever` also what is no more."""

    def __init__(self):
        self.attachments, self.there, self.ever = [], [], []

    def load(self, name):
        pass

    def attach(self, program, hook, file):
        one = os.pread(file, 99, 0), hook.rpartition(":")[2]
        self.there.append(one)
        self.ever.append(one)
        self.attachments.append(Attachment(hook, lambda: self.there.remove(one)))
        return self.attachments[-1]


@pytest.fixture
def looking(tmp_path, monkeypatch):
    """(a way to have a process run a file, the libraries, what is attached); a file's hook is at its length."""
    monkeypatch.setattr(tls_libraries, "_installed", list)
    monkeypatch.setattr(tls_libraries, "Elf", lambda data, path: data)
    monkeypatch.setattr(tls_libraries, "hooks_in", lambda data: [Hook(len(data), ("program",), ("SSL_write",))])
    monkeypatch.setattr(tls_libraries, "ExecEvents", lambda: None)
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)

    def run(pid, file):
        there = tmp_path / "proc" / str(pid)
        there.mkdir(parents=True, exist_ok=True)
        (there / "statm").write_text(f"{os.urandom(4).hex()} 1")
        (there / "maps").touch()
        (there / "exe").unlink(missing_ok=True)
        (there / "exe").symlink_to(file)

    (tmp_path / "proc").mkdir()
    loaded = Loaded()
    libraries = TlsLibraries(loaded, tmp_path / "proc")
    yield run, libraries, loaded.there
    libraries._release()
    assert not loaded.there


def test_a_file_is_hooked_once_as_long_as_somebody_runs_it(looking, tmp_path):
    run, libraries, there = looking
    (tmp_path / "node").write_text("node")
    for pid in (7, 8):
        run(pid, tmp_path / "node")
    libraries._scan()
    assert there == [(b"node", "0x4")] and libraries.has(edition(str(tmp_path / "node")))

    (tmp_path / "true").write_text("0")
    run(7, tmp_path / "true")
    run(8, tmp_path / "true")
    libraries._scan()
    assert there == [(b"0", "0x1")]


def test_a_process_that_runs_another_program_amid_the_look_gets_no_hook_of_the_one_before(
        looking, tmp_path, monkeypatch):
    run, libraries, there = looking
    (tmp_path / "one").write_text("one")
    (tmp_path / "second").write_text("second")
    run(7, tmp_path / "one")
    read = tls_libraries.hooks_in

    def become(data):
        run(7, tmp_path / "second")
        return read(data)

    monkeypatch.setattr(tls_libraries, "hooks_in", become)
    libraries._scan()
    assert there == [] and not libraries._files and libraries._loaded.ever == [(b"one", "0x3")]

    libraries._scan()
    assert there == [(b"second", "0x6")]


def test_a_file_that_is_overwritten_is_hooked_where_it_is_now_also_for_those_who_had_it_before(looking, tmp_path):
    run, libraries, there = looking
    (tmp_path / "node").write_text("node")
    run(7, tmp_path / "node")
    libraries._scan()

    (tmp_path / "node").write_text("longer")
    run(8, tmp_path / "node")
    libraries._scan()
    assert there == [(b"longer", "0x6")] and libraries.has(edition(str(tmp_path / "node")))

    libraries._scan()
    shutil.rmtree(tmp_path / "proc/8")
    libraries._scan()
    assert there == [(b"longer", "0x6")]


@pytest.mark.parametrize(("bound", "words"), [
    ("_MAX_LIBRARIES", "1 files have TLS read in them, and no more of them"),
    ("_MAX_FILES", "1 files are looked into, and no more of them")])
def test_what_there_is_no_room_for_is_said_once(looking, tmp_path, monkeypatch, caplog, bound, words):
    run, libraries, there = looking
    monkeypatch.setattr(tls_libraries, bound, 1)
    for pid in (7, 8, 9):
        (tmp_path / f"node{pid}").write_text("node")
        run(pid, tmp_path / f"node{pid}")
    libraries._scan()
    libraries._scan()

    assert len(there) == 1 and caplog.text.count(words) == 1
