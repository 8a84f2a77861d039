"""Boots one kernel in QEMU, runs one command in it and ends it, whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ci import disk
from ci.console import Console
from ci.job import Job, Kernel, Run
from ci.tools import missing, tool_path
from ci.verdict import Outcome, Verdict, judge, last_lines, parse_report


def boot(kernel: Kernel, job: Job, log: Path, progress: Callable[[str], None] = lambda text: None) -> Run:
    """Runs a job to its end, its console going to ``log``; ``progress`` is handed the console as it comes."""
    begun = time.monotonic()
    if obstacle := missing(disk.TOOLS) or disk.obstacle(kernel):
        return Run(Verdict(Outcome.UNKNOWN, obstacle), "", None, 0.0)
    with tempfile.TemporaryDirectory(prefix="kcompat-vm-") as temporary:
        work = Path(temporary)
        report_file, nonce = work / "report", secrets.token_hex(16)
        report_file.touch()
        console = Console(_open_log(log))
        try:
            command = disk.command(kernel, job, work, report_file, nonce)
            in_time = _run(command, job.deadline_s, work, console, progress)
        finally:
            console.close()
        report = parse_report(report_file.read_text(errors="replace"), nonce)
    verdict = judge(report, console.tail, kernel.release, None if in_time else job.deadline_s)
    tail = "\n".join(last_lines(console.tail, 40))
    return Run(verdict, tail, report.boot_s, time.monotonic() - begun, console.path, report.steps)


def _open_log(path: Path) -> BinaryIO:
    """The log, or one beside it while another run of the same kernel writes there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for candidate in (path, path.with_name(f"{path.stem}-{os.getpid()}{path.suffix}")):
        file = candidate.open("ab")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            return file
        file.close()
    raise RuntimeError(f"two boots of this process write to {candidate}")


def _run(command: list[str], deadline_s: float, work: Path, console: Console, progress: Callable[[str], None]) -> bool:
    """Runs the VM in a process group of its own until its console closes; False if the deadline came first."""
    deadline = time.monotonic() + deadline_s
    # Should we be killed outright, setpriv has the kernel end timeout, and timeout ends its whole group.
    guarded = ["setpriv", "--pdeathsig", "TERM", "timeout", "-k", "5", f"{deadline_s + 30:.0f}", *command]
    # QEMU's own temporary files go where they are removed even if it is killed.
    environment = {**os.environ, "TMPDIR": str(work), "PATH": tool_path()}
    process = subprocess.Popen(
        guarded,
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        while time.monotonic() < deadline:
            readable, _, _ = select.select([process.stdout], [], [], min(0.5, max(0.0, deadline - time.monotonic())))
            if readable:
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    return True
                console.feed(data)
                progress(data.decode(errors="replace"))
            elif os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return True
            else:
                progress("")
        return False
    finally:
        # The group is killed before its leader is reaped: until then its number cannot be anyone else's.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
