"""One collector a machine, and who may ask it how it is."""

import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from collector.instance import Lock, StatusSocket, ask, run_dir
from kcompat.errors import KcompatError, Missing

HOLD = "import sys; from pathlib import Path; from collector.instance import Lock; " \
       "lock = Lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_one_is_refused_with_the_pid_of_the_first(tmp_path, holder):
    with pytest.raises(KcompatError, match=f"runs already, as process {holder.pid}:"):
        Lock(tmp_path)


def test_the_lock_ends_with_its_process_however_that_ends(tmp_path, holder):
    holder.kill()
    holder.wait(20)

    lock = Lock(tmp_path)

    assert (tmp_path / "kcompat.pid").read_text() == f"{os.getpid()}\n"
    lock.close()
    Lock(tmp_path).close()


def test_a_place_that_cannot_be_is_missing(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(Missing, match=r"file/kcompat\.pid: "):
        Lock(tmp_path / "file")


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "kcompat.pid").symlink_to(tmp_path / "precious")

    with pytest.raises(Missing):
        Lock(tmp_path)

    assert not (tmp_path / "precious").exists()


def test_it_answers_again_and_again(tmp_path):
    (tmp_path / "kcompat.sock").write_text("left by a crash")
    said = iter([{"pid": 1}, {"pid": 2}, None])
    socket = StatusSocket(tmp_path, lambda: next(said))
    try:
        assert [ask(tmp_path), ask(tmp_path)] == [{"pid": 1}, {"pid": 2}]
        with pytest.raises(Missing, match="only just begun"):
            ask(tmp_path)
        with pytest.raises(KcompatError, match="no answer"):
            ask(tmp_path)  # whatever went wrong in it
        assert (tmp_path / "kcompat.sock").stat().st_mode & 0o777 == 0o600
    finally:
        socket.close()
    with pytest.raises(Missing, match="no kcompat collect runs here"):
        ask(tmp_path)


@contextmanager
def no_free_descriptor():
    """Of this process, from now until the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(fd.name) for fd in Path("/proc/self/fd").iterdir()) + 1, hard))
    fillers = []
    try:
        with suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        yield
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_answers_again_once_there_are_descriptors_again(tmp_path, caplog):
    told = StatusSocket(tmp_path, lambda: {"pid": 1})
    with socket.socket(socket.AF_UNIX) as early:
        with no_free_descriptor():
            early.connect(str(tmp_path / "kcompat.sock"))
            time.sleep(0.3)
        early.settimeout(20)
        assert early.recv(100) == b'{"pid": 1}'
    assert ask(tmp_path) == {"pid": 1}
    told.close()
    assert {record.message for record in caplog.records} <= {"status: Too many open files"}


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_others_may_not_ask(tmp_path):
    tmp_path.chmod(0o755)
    socket = StatusSocket(tmp_path, lambda: {"pid": 1})
    (tmp_path / "kcompat.sock").chmod(0o666)  # even if they came this far
    code = ("import os, sys; from pathlib import Path; sys.path.insert(0, os.getcwd())\n"
            "from collector.instance import ask\nos.chdir(sys.argv[1]); os.setuid(65534)\n"
            "try: print(ask(Path('.')))\nexcept Exception as error: print(error)")
    try:
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    finally:
        socket.close()

    assert "no answer" in done.stdout, done


def test_the_place_can_be_chosen(monkeypatch):
    monkeypatch.setenv("KCOMPAT_RUN", "/somewhere")
    assert str(run_dir()) == "/somewhere"
