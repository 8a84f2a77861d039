"""What QEMU is told to boot a kernel with: disks made here, whatever this machine is and whatever the kernel's is."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ci import ext4, initramfs
from ci.apt import FetchError
from ci.fetch import cache_dir
from ci.job import Job, Kernel, guest_script
from ci.rootfs import PROJECT, SITE, compile_python, root_image
from ci.tools import missing

TOOLS: tuple[str, ...] = ("cpio", "dpkg-deb", "mke2fs", "modprobe", "setpriv", "timeout")
PORT = "/dev/ttyS1"
SCRIPT, INIT = "kcompat-guest.sh", "kcompat-init.sh"
# What a booted host has; then the job. A restart is an end: QEMU is told so, and a panic ends in one too. Nothing is
# mounted on /tmp: the repository may be a clone there.
GUEST_INIT = f"""\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs tmpfs /run
mkdir -p /tmp && chmod 1777 /tmp
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
sh /{SCRIPT}
busybox reboot -f
"""
# Of the repository, what no guest runs: other Pythons' environments, history, caches of ours and of linters. What
# pytest has rewritten here it need not rewrite there.
NOT_FOR_GUESTS = shutil.ignore_patterns(".*", "*.cpython-3??.pyc", "*.egg-info", "build")
# Of a kernel's modules: drivers of what no VM of ours has, two thirds of them. Links at their top lead to headers.
NOT_FOR_VMS = shutil.ignore_patterns("build", "source", "ethernet", "gpu", "iio", "infiniband", "media", "scsi",
                                     "sound", "staging", "usb", "wireless")


@dataclass(frozen=True)
class Machine:
    """How QEMU plays one machine: ``magic`` is where every boot image of it has which bytes."""

    emulator: str
    options: tuple[str, ...]
    console: str
    magic: tuple[int, bytes]


MACHINES = {
    # Documentation/arch/x86/boot.rst. The second serial port is the report's.
    "x86_64": Machine("qemu-system-x86_64", ("-machine", "pc", "-cpu", "max", "-serial", "chardev:report"),
                      "ttyS0", (0x202, b"HdrS")),
    # Documentation/arch/arm64/booting.rst. "virt" has one UART for Linux: the report's is on PCI, ports come in pairs.
    # The processor is one without pointer authentication, which takes an emulator most of its time.
    "aarch64": Machine("qemu-system-aarch64",
                       ("-machine", "virt", "-cpu", "cortex-a72", "-chardev", "null,id=unused",
                        "-device", "pci-serial-2x,chardev1=unused,chardev2=report"),
                       "ttyAMA0", (0x38, b"ARM\x64")),
}  # fmt: skip


def obstacle(kernel: Kernel) -> str | None:
    """Why this boot need not be tried. What all boots of the machine need is made here, if it is not there yet."""
    machine = MACHINES.get(kernel.machine)
    if machine is None:
        return f"no emulator is known for {kernel.machine}"
    if absent := missing([machine.emulator]):
        return absent
    offset, magic = machine.magic
    try:
        with kernel.vmlinuz.open("rb") as file:
            file.seek(offset)
            if file.read(len(magic)) != magic:
                return f"{kernel.vmlinuz} is no {kernel.machine} kernel image"
        initramfs.boot_modules(kernel.modules)
        root_image(kernel.machine, cache_dir())
    except OSError as error:
        return f"cannot read {error.filename}: {error.strerror}"
    except FetchError as error:
        return str(error)
    return None


def command(kernel: Kernel, job: Job, work: Path, report: Path, nonce: str) -> list[str]:
    """QEMU's command line; the guest's first disk is the root of its machine, the second all that is its own."""
    machine, root = MACHINES[kernel.machine], root_image(kernel.machine, cache_dir())
    own, first = work / "own.ext4", work / "initramfs"
    _stage(job, kernel.modules, nonce, work / "own")
    ext4.make(work / "own", own)
    initramfs.make(kernel.modules, root.busybox, f"/{INIT}", work / "first", first)
    # An rt kernel, whose interrupts are threads, may take those of the serial port for nobody's and switch them off.
    # Whoever takes a hook away waits until all processors have passed by: 10 to 90 ms, a tenth of a kernel's time.
    arguments = [f"console={machine.console}", "panic=-1", "loglevel=6", "noirqdebug", "rcupdate.rcu_expedited=1",
                 *job.kernel_arguments]
    return [
        machine.emulator,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-m", job.memory, "-smp", str(job.cpus)),
        *("-kernel", str(kernel.vmlinuz), "-initrd", str(first), "-append", " ".join(arguments)),
        *("-chardev", "stdio,id=console", "-serial", "chardev:console"),
        *("-chardev", f"file,id=report,path={_quoted(report)}", *machine.options),
        *_drive("root", root.image),
        *_drive("own", own),
    ]


def _drive(name: str, image: Path) -> tuple[str, ...]:
    drive = f"if=none,id={name},format=raw,readonly=on,file={_quoted(image)}"
    return ("-drive", drive, "-device", f"virtio-blk-pci,drive={name}")


def _quoted(path: Path) -> str:
    """QEMU ends a value at a comma, unless there are two."""
    return str(path).replace(",", ",,")


def _stage(job: Job, modules: Path | None, nonce: str, tree: Path) -> None:
    """The guest's own files: its modules, the project as it is now, and Python where the job expects it."""
    if modules:
        _copy(modules, tree / "usr/lib/modules" / modules.name, NOT_FOR_VMS)
    project = tree / job.directory.relative_to("/")
    _copy(job.directory, project, NOT_FOR_GUESTS)
    compile_python(tree, [project])
    python = tree / Path(sys.executable).relative_to("/")
    python.parent.mkdir(parents=True, exist_ok=True)
    python.symlink_to("/usr/bin/python3")
    _install_project(job.directory, python.parent, tree / SITE)
    (tree / INIT).write_text(GUEST_INIT)
    (tree / SCRIPT).write_text(guest_script(job, nonce, PORT))


def _copy(source: Path, destination: Path, ignored: Callable[[str, list[str]], set[str]]) -> None:
    shutil.copytree(source, destination, symlinks=True, copy_function=_linked, ignore=ignored)


def _linked(source: str, destination: str) -> None:
    """One more name for a file, where both are on one file system: modules are many, and nobody changes them."""
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, destination, follow_symlinks=False)


def _install_project(directory: Path, programs: Path, site: Path) -> None:
    """What ``pip install -e`` would do: the project can be imported from anywhere, its commands lie beside Python."""
    site.mkdir(parents=True)
    (site / "repository.pth").write_text(f"{directory}\n")
    for name, target in tomllib.loads(PROJECT.read_text())["project"]["scripts"].items():
        module, _, function = target.partition(":")
        program = programs / name
        program.write_text(f"#!/usr/bin/python3\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        program.chmod(0o755)
