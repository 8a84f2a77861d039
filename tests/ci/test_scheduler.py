"""Kernels on real Dask workers, which die: each kernel is tried once more, and no VM outlives its worker."""

import os
import secrets
import signal
import subprocess
import sys

import psutil
import pytest
from distributed import Client

from ci.given import Given
from ci.matrix import REPOSITORY, Limits
from ci.scheduler import SchedulerError, check_all
from ci.verdict import Outcome
from tests.ci.test_vm import processes_with, wait_until


def dask(*arguments, log):
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "dask", *arguments], stdin=subprocess.DEVNULL, stdout=file,
                                stderr=file, cwd=REPOSITORY, start_new_session=True)


@pytest.fixture
def scheduler(tmp_path):
    """The address of a scheduler with two workers of one thread, all processes; a nanny starts a dead one anew."""
    known = tmp_path / "scheduler.json"
    started = [dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", known,
                    log=tmp_path / "scheduler.log")]
    try:
        wait_until(known.exists, 60)
        for name in ("one", "two"):
            started.append(dask("worker", "--scheduler-file", known, "--nthreads", "1", "--no-dashboard", "--host",
                                "127.0.0.1", "--local-directory", tmp_path / name, log=tmp_path / f"{name}.log"))
        with Client(scheduler_file=str(known), timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            address = client.scheduler.address
        yield address
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def limits():
    """With a mark in the kernels' command lines: nothing marked is left."""
    mark = f"mark={secrets.token_hex(8)}"
    yield Limits(deadline_s=240, kernel_arguments=(mark,))
    wait_until(lambda: not processes_with(mark), 20)


class Killer:
    """Kills the worker on which one kernel boots, so many times."""

    def __init__(self, name, times):
        self.name, self.times, self.killed = name, times, []

    def __call__(self, name, worker, phase, line):
        if name == self.name and phase == "boot" and line and len(self.killed) < self.times:
            port = int(worker.rpartition(":")[2])
            (pid,) = {c.pid for c in psutil.net_connections("tcp4") if c.laddr.port == port and c.status == "LISTEN"}
            if pid not in self.killed:
                self.killed.append(pid)
                os.kill(pid, signal.SIGKILL)


def checked(kernels, limits, tmp_path, scheduler, told):
    return {y.result.name: y.result for y in check_all(kernels, limits, tmp_path / "logs", 2, scheduler, told)}


@pytest.mark.vm
def test_a_dead_workers_kernel_is_tried_elsewhere(kernel, scheduler, limits, tmp_path):
    """Kernels without modules: each gives up, after a boot that is long enough to die in."""
    kernels = [Given(name, kernel.vmlinuz) for name in ("first", "second", "third")]
    told = Killer("second", times=1)
    results = checked(kernels, limits, tmp_path, scheduler, told)
    assert len(told.killed) == 1
    assert {name: result.attempts for name, result in results.items()} == {"first": 1, "second": 2, "third": 1}
    for result in results.values():
        assert result.check("fetch").outcome is Outcome.PASS
        assert result.check("boot").reason.startswith("no root: ")


@pytest.mark.vm
@pytest.mark.parametrize("where", ["on a scheduler's workers", "on this machine"])
def test_a_kernel_that_kills_its_worker_twice_is_reported(kernel, where, request, limits, tmp_path):
    scheduler = request.getfixturevalue("scheduler") if "scheduler" in where else None
    told = Killer("deadly", times=5)
    results = checked([Given("deadly", kernel.vmlinuz)], limits, tmp_path, scheduler, told)
    assert len(told.killed) == results["deadly"].attempts == 2
    assert results["deadly"].outcome is Outcome.UNKNOWN
    assert "the worker died that it ran on, 2 times; it is not tried again" in results["deadly"].reason


def test_where_no_scheduler_is_that_is_said(tmp_path):
    with pytest.raises(SchedulerError, match="no Dask scheduler answers at tcp:"):
        list(check_all([Given("x", tmp_path / "x")], Limits(), None, 1, "tcp://127.0.0.1:1", lambda *_: None))


def test_on_this_machine_a_kernel_that_is_not_there_is_told(tmp_path):
    (given,) = check_all([Given("x", tmp_path / "x")], Limits(), None, 1, None, lambda *_: None)
    assert given.result.check("fetch").reason == f"{tmp_path / 'x'}: No such file or directory"
    assert given.result.worker
