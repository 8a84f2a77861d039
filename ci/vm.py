"""Boots one kernel in QEMU through virtme-ng, runs one command in it and ends it, whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ci.console import Console
from ci.verdict import Outcome, Verdict, judge, last_lines, parse_report

TOOLS = ("vng", "virtme-run", "qemu-system-x86_64", "setpriv", "timeout", "file")
# Documentation/x86/boot.rst: at 0x202 of every bzImage.
BZIMAGE_MAGIC = b"HdrS"
CACHED_MOUNT = (
    "-fsdev local,id=cached,path=/,security_model=none,readonly=on,multidevs=remap"
    " -device virtio-9p-pci,fsdev=cached,mount_tag=cached"
)
GUEST_SCRIPT = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
# What a booted host has and virtme-ng leaves out.
[ -d /sys/fs/bpf ] && mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mkdir -p /run/netns
# virtme-ng's root is 9p without a cache: every page of every library is a round trip. Nothing writes to these,
# so a second, cached mount of the same files halves the time Python takes.
mkdir -p /run/cached
if mount -t 9p -o ro,version=9p2000.L,trans=virtio,access=any,msize=512000,cache=loose cached /run/cached; then
    for path in /usr/bin /usr/include /usr/lib/*-linux-gnu /usr/lib/python3* /usr/local {directory}; do
        [ -d "$path" ] && mount --bind "/run/cached$path" "$path"
    done
fi
cd {directory} || exit 1
read -r uptime idle </proc/uptime
printf '%s start %s %s\\n' {nonce} "$(uname -r)" "$uptime" >/dev/ttyS1
env {environment} {command} </dev/null
status=$?
sync
printf '%s exit %s\\n' {nonce} "$status" >/dev/ttyS1
exit "$status"
"""


@dataclass(frozen=True)
class Kernel:
    """What to boot; ``uname -r`` in the guest must then say ``release``, unless that is None."""

    vmlinuz: Path
    release: str | None = None


@dataclass(frozen=True)
class Job:
    """What to run in a guest, and the limits on it."""

    command: Sequence[str]
    directory: Path
    deadline_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    kernel_arguments: Sequence[str] = ()
    memory: str = "2G"
    cpus: int = 2


@dataclass(frozen=True)
class Run:
    """How a boot ended."""

    verdict: Verdict
    tail: str
    boot_s: float | None
    total_s: float
    log: Path | None = None


def guest_script(job: Job, nonce: str) -> str:
    """The script the guest runs: the report goes to a serial port of its own, where no kernel message can cut in."""
    return GUEST_SCRIPT.format(
        directory=shlex.quote(str(job.directory)),
        nonce=nonce,
        environment=shlex.join(f"{key}={value}" for key, value in job.environment.items()),
        command=shlex.join(job.command),
    )


def vng_command(vng: str, kernel: Kernel, job: Job, script: Path, report: Path) -> list[str]:
    """The boot's command line; quoted where vng pastes a word into a shell command of its own."""
    return [
        vng,
        "--disable-kvm",
        "--disable-microvm",
        # Without it vng waits 3 s for a virtiofsd that QEMU's own cannot be.
        "--force-9p",
        "--verbose",
        "-r",
        shlex.quote(str(kernel.vmlinuz)),
        "--user",
        "root",
        "--memory",
        job.memory,
        "--cpus",
        str(job.cpus),
        *(f"--append={argument}" for argument in job.kernel_arguments),
        f"--qemu-opts=-serial file:{report} {CACHED_MOUNT}",
        "--",
        f"sh {script}",
    ]


def boot(kernel: Kernel, job: Job, log: Path, progress: Callable[[str], None] = lambda text: None) -> Run:
    """Runs a job to its end, its console going to ``log``; ``progress`` is handed the console as it comes."""
    begun = time.monotonic()
    obstacle = _obstacle(kernel)
    if obstacle:
        return Run(Verdict(Outcome.UNKNOWN, obstacle), "", None, 0.0)
    with tempfile.TemporaryDirectory(prefix="kcompat-vm-") as temporary:
        work = Path(temporary)
        script, report_file, nonce = work / "guest.sh", work / "report", secrets.token_hex(16)
        script.write_text(guest_script(job, nonce))
        report_file.touch()
        console = Console(_open_log(log))
        try:
            command = vng_command(str(find_tool("vng")), kernel, job, script, report_file)
            in_time = _run(command, job.deadline_s, work, console, progress)
        finally:
            console.close()
        report = parse_report(report_file.read_text(errors="replace"), nonce)
    verdict = judge(report, console.tail, kernel.release, None if in_time else job.deadline_s)
    return Run(verdict, "\n".join(last_lines(console.tail, 40)), report.boot_s, time.monotonic() - begun, console.path)


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


def _obstacle(kernel: Kernel) -> str | None:
    """Why this boot need not be tried; QEMU would run garbage for as long as the deadline lets it."""
    missing = [tool for tool in TOOLS if find_tool(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        with kernel.vmlinuz.open("rb") as file:
            head = file.read(0x206)
    except OSError as error:
        return f"cannot read {kernel.vmlinuz}: {error.strerror}"
    return None if head[0x202:] == BZIMAGE_MAGIC else f"{kernel.vmlinuz} is no x86 kernel image"


def _run(command: list[str], deadline_s: float, work: Path, console: Console, progress: Callable[[str], None]) -> bool:
    """Runs the VM in a process group of its own until its console closes; False if the deadline came first."""
    deadline = time.monotonic() + deadline_s
    # Should we be killed outright, setpriv has the kernel end timeout, and timeout ends its whole group.
    guarded = ["setpriv", "--pdeathsig", "TERM", "timeout", "-k", "5", f"{deadline_s + 30:.0f}", *command]
    # vng's own temporary files go where they are removed even if it is killed.
    environment = {**os.environ, "TMPDIR": str(work), "PATH": f"{_tool_path()}", "TERM": "dumb"}
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


def _tool_path() -> str:
    """Our interpreter's directory first: vng finds its own helpers through PATH."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def find_tool(tool: str) -> str | None:
    return shutil.which(tool, path=_tool_path())
