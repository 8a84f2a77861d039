"""Kernels a user gives: a vmlinuz with its modules, or a directory of them laid out as installed kernels are."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ci.apt import FetchError
from ci.fetch import Image

_BZIMAGE = b"HdrS"
_VERSION = re.compile(r"[\w.+~-]+")


@dataclass(frozen=True)
class Given:
    """A user's kernel. A worker on another machine finds it at the same paths."""

    name: str
    vmlinuz: Path
    modules: Path | None = None
    """lib/modules/RELEASE itself, or a directory with it in it; None for a kernel that needs none to boot."""
    vmlinux: Path | None = None
    flavour: str = "given"
    machine: str = "x86_64"


def given_kernels(directory: Path) -> list[Given]:
    """The kernels of a directory such as / or a package's content: vmlinuz-* there or in boot, lib/modules/*."""
    return [
        Given(vmlinuz.name.removeprefix("vmlinuz-"), vmlinuz, directory, _vmlinux(directory, vmlinuz))
        for vmlinuz in sorted(_images(directory))
    ]


def obtain(given: Given, cache: Path) -> Image:
    """The layout of all our kernels, made of links to the user's files, which stay as they are. Raises FetchError."""
    try:
        release = release_of(given.vmlinuz)
        modules = _modules(given.modules, release) if given.modules else None
        content = [str(given.vmlinuz.resolve()), str(given.vmlinuz.stat().st_mtime_ns), str(modules)]
        key = hashlib.sha256("\n".join(content).encode()).hexdigest()[:12]
        directory = cache / "given" / f"{release}-{key}"
        if not directory.is_dir():
            _arrange(given.vmlinuz, release, modules, directory)
    except OSError as error:
        raise FetchError(f"{error.filename}: {error.strerror}") from error
    return Image(str(given.vmlinuz), "", release, directory / f"boot/vmlinuz-{release}", (), given.vmlinux)


def release_of(vmlinuz: Path) -> str:
    """What ``uname -r`` will say, from the boot header (Documentation/arch/x86/boot.rst). Raises FetchError."""
    with vmlinuz.open("rb") as file:
        head = file.read(1 << 16)
    if head[0x202:0x206] != _BZIMAGE:
        raise FetchError(f"{vmlinuz} is no x86 kernel image")
    at = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    version = _VERSION.match(head[at : at + 100].decode("ascii", errors="replace"))
    if version is None:
        raise FetchError(f"{vmlinuz} does not say its version")
    return version[0]


def _images(directory: Path) -> Iterator[Path]:
    for folder in (directory, directory / "boot"):
        yield from (path for path in folder.glob("vmlinuz-*") if path.is_file())


def _vmlinux(directory: Path, vmlinuz: Path) -> Path | None:
    name = vmlinuz.name.replace("vmlinuz", "vmlinux", 1)
    places = (vmlinuz.parent / name, directory / "usr/lib/debug/boot" / name)
    return next((path for path in places if path.is_file()), None)


def _modules(directory: Path, release: str) -> Path:
    places = (directory / "lib/modules" / release, directory / "usr/lib/modules" / release, directory / release)
    found = next((path for path in places if path.is_dir()), directory if directory.name == release else None)
    if found is None or not found.is_dir():
        raise FetchError(f"{directory} holds no modules of {release}")
    if not (found / "modules.dep").is_file():
        raise FetchError(f"{found} has no modules.dep: run depmod for {release}")
    return found.resolve()


def _arrange(vmlinuz: Path, release: str, modules: Path | None, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".given-", dir=directory.parent) as temporary:
        kernel = Path(temporary) / "kernel"
        (kernel / "boot").mkdir(parents=True)
        (kernel / "lib/modules").mkdir(parents=True)
        shutil.copy(vmlinuz, kernel / f"boot/vmlinuz-{release}")
        if modules:
            (kernel / "lib/modules" / release).symlink_to(modules)
        try:
            kernel.rename(directory)
        except OSError:
            # Another worker was first; what it made is the same.
            if not directory.is_dir():
                raise
