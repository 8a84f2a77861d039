"""Boots an x86 kernel through virtme-ng: this machine's own files are the guest's root, over 9p."""

from __future__ import annotations

import compileall
import shlex
from pathlib import Path

from ci.job import Job, Kernel, guest_script
from ci.tools import find_tool

TOOLS: tuple[str, ...] = ("vng", "virtme-run", "qemu-system-x86_64", "setpriv", "timeout", "file")
# Documentation/x86/boot.rst: at 0x202 of every bzImage.
BZIMAGE_MAGIC = b"HdrS"
PORT = "/dev/ttyS1"
CACHED_MOUNT = (
    "-fsdev local,id=cached,path=/,security_model=none,readonly=on,multidevs=remap"
    " -device virtio-9p-pci,fsdev=cached,mount_tag=cached"
)
# virtme-ng's root is 9p without a cache: every page of every library is a round trip. Nothing writes to these,
# so a second, cached mount of the same files halves the time Python takes.
PREPARE = """\
mkdir -p /run/cached
if mount -t 9p -o ro,version=9p2000.L,trans=virtio,access=any,msize=512000,cache=loose cached /run/cached; then
    for path in /usr/bin /usr/include /usr/lib/*-linux-gnu /usr/lib/python3* /usr/local {directory}; do
        [ -d "$path" ] && mount --bind "/run/cached$path" "$path"
    done
fi
"""


def obstacle(kernel: Kernel) -> str | None:
    """Why this boot need not be tried; QEMU would run garbage for as long as the deadline lets it."""
    try:
        with kernel.vmlinuz.open("rb") as file:
            head = file.read(0x206)
    except OSError as error:
        return f"cannot read {kernel.vmlinuz}: {error.strerror}"
    return None if head[0x202:] == BZIMAGE_MAGIC else f"{kernel.vmlinuz} is no x86 kernel image"


def _modules(kernel: Kernel) -> Path:
    return kernel.vmlinuz.parent.parent / "lib/modules" / str(kernel.release)


def command(kernel: Kernel, job: Job, work: Path, report: Path, nonce: str) -> list[str]:
    """The boot's command line; quoted where vng pastes a word into a shell command of its own."""
    _compile_python(job.directory)
    script = work / "guest.sh"
    prepare = PREPARE.format(directory=shlex.quote(str(job.directory)))
    script.write_text(guest_script(job, nonce, prepare, PORT))
    return [
        str(find_tool("vng")),
        "--disable-kvm",
        "--disable-microvm",
        # Without it vng waits 3 s for a virtiofsd that QEMU's own cannot be.
        "--force-9p",
        "--verbose",
        # Without a block layer, as ours are, a kernel does not mount a 9p root by itself.
        *(() if _modules(kernel).is_dir() else ("--force-initramfs",)),
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


def _compile_python(directory: Path) -> None:
    """What a guest imports, in the __pycache__ that it sees: its own is read-only, and compiling is most of a start.

    Where it cannot be written guests compile at every start.
    """
    for package in directory.glob("*/__init__.py"):
        compileall.compile_dir(package.parent, quiet=2)
