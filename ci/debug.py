"""The vmlinux of a Debian kernel, out of its -dbg package: DWARF, a second judge beside BTF."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

from ci import apt
from ci.apt import FetchError
from ci.debian import Package, parse_packages
from ci.fetch import Image
from ci.kernels import DEBIAN_ARCHITECTURES, Entry


def with_dwarf(entry: Entry, image: Image, cache: Path) -> Image:
    """The image with its vmlinux; with a note instead where no suite has the package of just this build."""
    architecture = DEBIAN_ARCHITECTURES[entry.machine]
    vmlinux = cache / "debug" / f"vmlinux-{image.release}_{image.version}_{architecture}"
    try:
        with apt.lock(cache):
            if not vmlinux.is_file():
                _install(entry, image, architecture, cache, vmlinux)
    except FetchError as error:
        return replace(image, notes=(*image.notes, f"no DWARF: {error}"))
    return replace(image, vmlinux=vmlinux)


def extract(deb: Path, release: str, vmlinux: Path) -> None:
    """Just the one file of a gigabyte of packages. Raises FetchError."""
    name = re.compile(rf"\./usr/lib/debug/(boot/vmlinux-{re.escape(release)}|lib/modules/{re.escape(release)}/vmlinux)")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isreg() and name.fullmatch(member.name) else None
                    if content:
                        with vmlinux.open("wb") as file:
                            shutil.copyfileobj(content, file, 1 << 20)
                        return
        except (tarfile.TarError, EOFError) as error:
            raise FetchError(f"{deb.name} cannot be unpacked: {error}") from error
        finally:
            process.kill()
    raise FetchError(f"{deb.name} holds no vmlinux of {release}")


def _install(entry: Entry, image: Image, architecture: str, cache: Path, vmlinux: Path) -> None:
    suite, package = _find(entry, image, architecture, cache)
    vmlinux.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=vmlinux.parent) as temporary:
        work = Path(temporary)
        extract(apt.download(package, suite, architecture, cache, work), image.release, work / "vmlinux")
        (work / "vmlinux").rename(vmlinux)


def _find(entry: Entry, image: Image, architecture: str, cache: Path) -> tuple[str, Package]:
    wanted = Package(f"linux-image-{image.release}-dbg", image.version)
    for suite in entry.suites:
        for package in parse_packages(apt.index(suite, architecture, cache), re.compile(re.escape(wanted.name))):
            if package.version == wanted.version:
                return suite, package
    raise FetchError(f"{', '.join(entry.suites)} have no {wanted.name} {wanted.version}")
