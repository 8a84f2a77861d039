"""Which processes are bashes and what their users are called."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from collector import bashes
from collector.bashes import Bash, Target, is_bash, running, runs, target
from collector.datasets import bash as dataset
from collector.datasets.bash import BashLines
from collector.enrich import users as module
from collector.enrich.users import Users, passwd_name
from collector.mapped_files import edition
from kcompat.attach import Attachment
from kcompat.errors import KcompatError


@pytest.mark.parametrize("path, expected", [
    ("/bin/bash", True), ("/usr/bin/bash (deleted)", True), ("/opt/bash-5.2/bin/bash-5.2", True),
    ("/usr/bin/bash.dpkg-tmp (deleted)", True), ("/usr/bin/dash", False), ("/usr/bin/bashful", False),
    ("/home/bash/python", False), ("", False)])
def test_a_bash_is_known_by_what_its_program_is_called(path, expected):
    assert is_bash(path) == expected


def test_a_process_that_is_no_bash_is_not_among_them_and_has_no_target():
    assert os.getpid() not in {bash.pid for bash in running()}
    with pytest.raises(KcompatError), target(Bash(2**22 + 1, (0, 0, 0, 0), (0, 0), "bash")):
        pass


def test_a_program_without_readline_says_so():
    with subprocess.Popen(["sleep", "60"]) as asleep:
        try:
            program = edition(f"/proc/{asleep.pid}/exe")
            with pytest.raises(KcompatError, match=r"has no readline\(\)"), target(
                    Bash(asleep.pid, program, (0, 0), "sleep")):
                pass
        finally:
            asleep.kill()


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """(/proc, a bash in it, a way for it to become another program); readline() is at 5 of both."""
    for name in ("bash", "other"):
        (tmp_path / name).write_text(name)
    proc = tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    exe = proc / "7" / "exe"
    exe.symlink_to(tmp_path / "bash")
    monkeypatch.setattr(bashes, "Elf", lambda data, path: data)
    monkeypatch.setattr(bashes, "function_offset", lambda elf, name: 5)

    def become(name):
        exe.unlink()
        exe.symlink_to(tmp_path / name)

    return proc, Bash(7, edition(str(exe)), (0, 0), "bash"), become


def test_what_is_hooked_is_the_file_that_was_read_whatever_the_process_runs_by_now(made_up):
    proc, bash, become = made_up
    with target(bash, proc) as where:
        become("other")
        assert os.pread(where.descriptor, 9, 0) == b"bash"
    assert where.offset == 5


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_process_that_becomes_another_while_it_is_looked_at_has_no_target(made_up, monkeypatch, when):
    proc, bash, become = made_up
    if when == "before":
        become("other")
    else:
        monkeypatch.setattr(bashes, "function_offset", lambda elf, name: become("other") or 5)
    with pytest.raises(ProcessLookupError), target(bash, proc):
        pass
    assert not runs(bash, proc)


def test_that_there_are_too_many_bashes_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(dataset, "_MAX_TARGETS", 1)
    lines = BashLines.__new__(BashLines)
    lines._programs, lines._is_full_said = {(1, 2, 3, 4): None}, False
    for pid in (8, 9):
        lines._hook(Bash(pid, (1, 3, 3, 4), (0, 0), "bash"))
    assert list(lines._programs) == [(1, 2, 3, 4)] and caplog.text.count("1 kinds of bash are seen, and no more") == 1


@pytest.mark.parametrize(("is_same", "programs"), [(True, {(1, 2, 3, 4): None}), (False, {})])
def test_a_program_is_given_up_only_by_what_was_seen_of_it(monkeypatch, is_same, programs):
    @contextmanager
    def target(bash):
        raise KcompatError("it is strange")
        yield

    monkeypatch.setattr(bashes, "target", target)
    monkeypatch.setattr(bashes, "runs", lambda bash: is_same)
    lines = BashLines.__new__(BashLines)
    lines._programs = {}
    lines._hook(Bash(7, (1, 2, 3, 4), (0, 0), "bash"))
    assert lines._programs == programs


def test_a_bash_that_is_overwritten_is_hooked_once_where_readline_is_now(monkeypatch):
    there = []

    def attach(program, hook, file):
        assert not there  # two probes of one file at a time may share what the kernel kept of the first
        there.append(hook)
        attached.append(Attachment(hook, lambda: there.remove(hook)))
        return attached[-1]

    attached, lines = [], BashLines.__new__(BashLines)
    lines.loaded = SimpleNamespace(attach=attach, attachments=attached)
    lines._attached, lines._programs, lines._bashes, lines._users = {}, {}, {}, Users()
    lines._lock, lines._has_other_roots = threading.Lock(), False
    for size in (100, 200):
        bash = Bash(7, (1, 2, size, size), (0, 0), "bash")
        where = Target(bash.program, "/proc/7/exe", size, 3)
        monkeypatch.setattr(bashes, "running", lambda bash=bash: [bash])
        monkeypatch.setattr(bashes, "target", lambda _, where=where: nullcontext(where))
        lines._scan()
    assert there == ["/proc/7/exe:0xc8"] and list(lines._programs) == [(1, 2, 200, 200)]
    monkeypatch.setattr(bashes, "running", list)
    lines._scan()
    assert not there and not lines._programs


PASSWD = "root:x:0:0:root:/root:/bin/sh\n#comment\nbroken\n:x:7:\ncaptain:x:4242:4242::/:/bin/sh\nmate:x:4242:1::/:\n"


@pytest.mark.parametrize("uid, name", [(0, "root"), (4242, "captain"), (7, None), (1, None)])
def test_names_are_read_off_passwd(uid, name):
    assert passwd_name(PASSWD, uid) == name


def test_a_number_stands_for_who_has_no_name_or_may_be_anybody():
    users = Users()
    assert users.name(0, os.getpid(), users.here) == "root"
    assert users.name(4_000_000, os.getpid(), users.here) == "4000000"
    assert users.name(0, os.getpid(), None) == "0"
    assert users.name(0, 2**22 + 1, (0, 0)) == "0"


def test_a_directory_service_that_is_down_keeps_nobody_waiting_twice(monkeypatch):
    asked, users, begun, up = [], Users(), threading.Event(), threading.Event()

    def silent(uid):
        asked.append(uid)
        begun.set()
        up.wait(60)
        return SimpleNamespace(pw_name="ada")

    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(module.pwd, "getpwuid", silent)
    try:
        assert [users.name(uid, 1, users.here) for uid in (4242, 4242, 4243)] == ["4242", "4242", "4243"]
        assert begun.wait(60) and asked == [4242]
        monkeypatch.setattr(module, "_PATIENCE_S", 60)
        assert users.name(0, os.getpid(), (0, 0)) == "root"  # a container is another matter
    finally:
        up.set()
    users._unanswered[users.here].join(60)
    assert users.name(4242, 1, users.here) == "ada"


def test_who_is_not_found_any_more_keeps_the_name(monkeypatch):
    names, users, edition = {4242: "ada"}, Users(), [0]
    monkeypatch.setattr(module, "_edition", lambda: (edition[0],))
    monkeypatch.setattr(module.pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name=names[uid]))
    told = []
    for names[4242] in ("ada", "bob"):
        told.append(users.name(4242, 1, users.here))
        edition[0] += 1
    names.clear()
    assert [*told, users.name(4242, 1, users.here), users.name(7, 1, users.here)] == ["ada", "bob", "bob", "7"]


def test_a_number_that_is_given_to_somebody_else_has_the_new_name_at_once(tmp_path):
    """/etc/passwd is a file of ours there, in a mount namespace of its own, and is replaced by another as useradd does.
    """
    for number, name in enumerate(("ada", "bob")):
        (tmp_path / str(number)).write_text(f"root:x:0:0::/:/bin/sh\n{name}:x:4242:4242::/:/bin/sh\n")
    script = f"""
import os, subprocess
from collector.enrich.users import Users
users = Users()
for number in range(2):
    subprocess.run(["mount", "--bind", "{tmp_path}/" + str(number), "/etc/passwd"], check=True)
    print(users.name(4242, os.getpid(), users.here))
"""
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", script], text=True,
                          capture_output=True, timeout=60, check=False)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr}")
    assert done.stdout == "ada\nbob\n", done.stderr
