"""Real boots that go wrong: each ends in time, with its reason, and leaves no process behind."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ci.console import LOG_LIMIT, TAIL_LIMIT
from ci.job import Job
from ci.verdict import Outcome
from ci.vm import _open_log, boot

REPOSITORY = Path(__file__).resolve().parents[2]


def processes_with(text):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if text.encode() in command and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def wait_until(condition, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.2)


@pytest.fixture
def run(tmp_path):
    """Boots with a mark in the kernel's command line and sees that nothing marked is left."""
    mark = f"mark={secrets.token_hex(8)}"

    def run(kernel, *command, deadline_s=240, arguments=()):
        job = Job(command, REPOSITORY, deadline_s, kernel_arguments=(mark, *arguments))
        return boot(kernel, job, tmp_path / "logs/console.log")

    yield run
    assert processes_with(mark) == []


def test_two_runs_of_a_kernel_do_not_share_a_log(tmp_path):
    with _open_log(tmp_path / "5.10.log") as first:
        first.write(b"first")
        with _open_log(tmp_path / "5.10.log") as second:
            assert Path(second.name) == tmp_path / f"5.10-{os.getpid()}.log"
    with _open_log(tmp_path / "5.10.log") as again:
        assert Path(again.name).read_bytes() == b""


@pytest.mark.vm
def test_the_status_of_a_command_that_fails_is_told(kernel, run, tmp_path):
    done = run(kernel, "sh", "-c", "echo said it; exit 7")
    assert (done.verdict.outcome, done.verdict.exit_status) == (Outcome.FAIL, 7)
    assert b"said it" in (tmp_path / "logs/console.log").read_bytes()


@pytest.mark.vm
def test_the_guest_is_a_usable_host(kernel, run):
    checks = """
        set -ex
        touch /tmp/written
        test "$(id -u)" = 0
        test -d /sys/kernel/debug/tracing/events -a -d /sys/kernel/tracing/events
        modprobe nf_conntrack
        ip netns add other
        ip netns exec other ip link set lo up
        ping -c 1 -W 5 127.0.0.1 || ip -4 addr show lo | grep 127.0.0.1
        ip -6 addr show lo | grep ::1
        test "$(nproc)" = 2
    """
    done = run(kernel, "sh", "-c", checks)
    assert done.verdict.outcome is Outcome.PASS, done.tail


@pytest.mark.vm
def test_garbage_instead_of_a_kernel(kernel, run, tmp_path):
    (tmp_path / "vmlinuz").write_bytes(os.urandom(100_000))
    done = run(replace(kernel, vmlinuz=tmp_path / "vmlinuz"), "true")
    assert (done.verdict.outcome, done.total_s < 5) == (Outcome.UNKNOWN, True)
    assert "is no x86_64 kernel image" in done.verdict.reason


@pytest.mark.vm
def test_a_kernel_cut_short(kernel, run, tmp_path):
    (tmp_path / "vmlinuz").write_bytes(kernel.vmlinuz.read_bytes()[:2_000_000])
    done = run(replace(kernel, vmlinuz=tmp_path / "vmlinuz"), "true", deadline_s=15)
    assert done.verdict.outcome is Outcome.UNKNOWN
    assert done.total_s < 25


@pytest.mark.vm
def test_a_kernel_without_its_modules(kernel, run, tmp_path):
    done = run(replace(kernel, modules=tmp_path), "true")
    assert done.verdict.outcome is Outcome.UNKNOWN
    assert done.verdict.reason == f"{tmp_path} is no directory of modules: it has no modules.dep"
    done = run(replace(kernel, modules=None), "true")
    assert done.verdict.outcome is Outcome.UNKNOWN
    assert done.verdict.reason.startswith("no root: the kernel does not mount its disks; it needs virtio_pci")


@pytest.mark.vm
def test_a_command_that_hangs_ends_at_the_deadline(kernel, run):
    done = run(kernel, "sleep", "1000", deadline_s=40)
    assert done.verdict.outcome is Outcome.UNKNOWN
    assert done.verdict.reason.startswith("deadline of 40 s passed")
    assert done.total_s < 50


@pytest.mark.vm
def test_an_init_that_hangs_ends_at_the_deadline(kernel, run):
    done = run(kernel, "true", deadline_s=60, arguments=("loglevel=7", "rdinit=/bin/busybox", "--", "sleep", "1000"))
    assert (done.verdict.outcome, done.verdict.reason) == (Outcome.UNKNOWN, "deadline of 60 s passed in boot")
    assert "as init process" in done.tail
    assert done.total_s < 75


@pytest.mark.vm
def test_a_console_that_is_flooded_ends_at_the_deadline_and_its_log_is_bounded(kernel, run, tmp_path):
    done = run(kernel, "sh", "-c", "yes flood >/dev/console", deadline_s=40)
    assert (done.verdict.outcome, done.verdict.reason) == (Outcome.UNKNOWN, "deadline of 40 s passed in the command")
    assert done.tail.splitlines()[-2] == "flood"
    assert 100_000 < (tmp_path / "logs/console.log").stat().st_size < LOG_LIMIT + TAIL_LIMIT + 100


@pytest.mark.vm
def test_a_guest_that_fills_its_disk_says_so_in_time(kernel, run):
    """All it can write to is memory: that ends too, and with it the command or the kernel."""
    steps = f"KCOMPAT_CI_SECONDS=200 {sys.executable} -m ci.guest info"
    done = run(kernel, "sh", "-c", f"cat /dev/zero >/full; cat /dev/zero >/tmp/full; {steps}")
    # Whom the kernel ends first, the command, its shell or itself, is its own choice.
    assert done.verdict.outcome is not Outcome.PASS
    assert done.total_s < 240


@pytest.mark.vm
def test_a_panic_in_the_command(kernel, run):
    done = run(kernel, "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000")
    assert done.verdict.outcome is Outcome.UNKNOWN
    assert done.verdict.reason == "Kernel panic - not syncing: sysrq triggered crash"


@pytest.mark.vm
@pytest.mark.parametrize(("number", "command"), [
    (signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGKILL, []),
    (signal.SIGTERM, ["--", "sleep", "1000"]), (signal.SIGKILL, ["--", "sleep", "1000"]),
])
def test_a_run_that_is_ended_takes_its_vm_along(kernel, number, command, tmp_path):
    mark = f"mark={secrets.token_hex(8)}"
    asked = [sys.executable, "-m", "ci", "-k", "5.10", "--append", mark, "--output", tmp_path / "out", *command]
    # A killed run cannot remove its temporary directory; pytest does.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with (tmp_path / "said").open("wb") as said:
        started = subprocess.Popen(asked, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=said,
                                   stderr=said, start_new_session=True)
    try:

        def qemu_runs():
            return any(b"qemu" in Path(f"/proc/{pid}/comm").read_bytes() for pid in processes_with(mark))

        wait_until(qemu_runs, 60)
        # A terminal sends Ctrl-C to all of the foreground, to Dask's workers too.
        os.killpg(started.pid, number) if number == signal.SIGINT else started.send_signal(number)
        assert started.wait(30) == {signal.SIGKILL: -signal.SIGKILL}.get(number, 130)
        wait_until(lambda: not processes_with(mark) and not session(started.pid), 20)
        assert b"Traceback" not in (tmp_path / "said").read_bytes()
    finally:
        started.kill()


def session(leader):
    """The processes of a session that are left: a run's workers are in it, whatever their command line says."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found
