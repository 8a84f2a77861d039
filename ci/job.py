"""What is booted, what runs in it and how that ended: plain values, and the script every guest runs."""

from __future__ import annotations

import base64
import io
import shlex
import tarfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ci.verdict import Step, Verdict

GUEST_SCRIPT = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
# What a booted host has and a guest's init leaves out.
[ -d /sys/fs/bpf ] && mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mkdir -p /run/netns
{unpack}
cd {directory} || exit 1
read -r uptime idle </proc/uptime
printf '%s start %s %s\\n' {nonce} "$(uname -r)" "$uptime" >{port}
env {environment} {command} </dev/null
status=$?
sync
printf '%s exit %s\\n' {nonce} "$status" >{port}
exit "$status"
"""


@dataclass(frozen=True)
class Kernel:
    """What to boot; ``uname -r`` in the guest must then say ``release``."""

    vmlinuz: Path
    release: str
    modules: Path | None = None
    """lib/modules/RELEASE; None for a kernel that has in itself what it takes to boot."""
    machine: str = "x86_64"


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
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What the guest finds at these paths, which must be where it can write: below /run or /tmp."""


@dataclass(frozen=True)
class Run:
    """How a boot ended, and what steps the guest reported until then."""

    verdict: Verdict
    tail: str
    boot_s: float | None
    total_s: float
    log: Path | None = None
    steps: Sequence[Step] = ()


def guest_script(job: Job, nonce: str, port: str) -> str:
    """The script the guest runs: the report goes to a serial port of its own, where no kernel message can cut in.

    The command is told the port and the nonce, so that it may report steps of its own (``ci.guest``).
    """
    environment = {**job.environment, "KCOMPAT_CI_PORT": port, "KCOMPAT_CI_NONCE": nonce}
    return GUEST_SCRIPT.format(
        unpack=_unpack(job.files),
        directory=shlex.quote(str(job.directory)),
        nonce=nonce,
        port=port,
        environment=shlex.join(f"{key}={value}" for key, value in environment.items()),
        command=shlex.join(job.command),
    )


def _unpack(files: Mapping[str, bytes]) -> str:
    """Shell that writes the files. They travel in the script."""
    if not files:
        return ""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o700
            archive.addfile(entry, io.BytesIO(content))
    lines = textwrap.wrap(base64.b64encode(packed.getvalue()).decode(), 100)
    return "\n".join(["base64 -d <<END | tar -xz --no-same-owner -C /", *lines, "END"])
