"""Downloads a kernel with apt and unpacks it into the cache, whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ci import apt
from ci.apt import FetchError, GoneError
from ci.debian import Build, builds
from ci.kernels import DEBIAN_ARCHITECTURES, Entry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """An unpacked kernel: ``vmlinuz`` below the same root as ``lib/modules/RELEASE``, if it has modules."""

    package: str
    version: str
    release: str
    vmlinuz: Path
    notes: tuple[str, ...] = ()
    vmlinux: Path | None = None
    """The same build with DWARF, where there is one: it is the judge of kernels without BTF."""
    layout: Path | None = None
    """What the compiler says (``ci.offsetof``), where DWARF does not know: it judges instead."""
    judge: str = "dwarf"
    """What that DWARF is of: the kernel itself, or its headers (``ci.headers``)."""


def cache_dir() -> Path:
    """$KCOMPAT_CACHE, else the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KCOMPAT_CACHE") or Path(base) / "kcompat")


def fetch(entry: Entry, cache: Path) -> Image:
    """The newest build of an entry that is still there; a build the mirror has dropped gives way to the next."""
    architecture = DEBIAN_ARCHITECTURES[entry.machine]
    with apt.lock(cache):
        indexes, notes = [], []
        for suite in entry.suites:
            try:
                indexes.append((suite, apt.index(suite, architecture, cache)))
            except FetchError as error:
                notes.append(f"{suite}: {error}")
        for build in builds(entry, indexes):
            directory = cache / "kernels" / f"{build.image.name}_{build.image.version}_{architecture}"
            try:
                if not directory.is_dir():
                    _install(build, architecture, cache, directory)
            except GoneError as error:
                notes.append(str(error))
                log.info("%s; trying the next build", error)
                continue
            return _image(build, directory, tuple(notes))
    tried = "; ".join(notes) or f"no package in {', '.join(entry.suites)} matches {entry.package}"
    raise FetchError(f"no build of {entry.name} is to be had: {tried}")


def _image(build: Build, directory: Path, notes: tuple[str, ...]) -> Image:
    (vmlinuz,) = directory.glob("boot/vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    return Image(build.image.name, build.image.version, release, vmlinuz, notes)


def _install(build: Build, architecture: str, cache: Path, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=directory.parent) as temporary:
        work = Path(temporary)
        for package in build.packages:
            deb = apt.download(package, build.suite, architecture, cache, work)
            apt.run(["dpkg-deb", "-x", str(deb), str(work / "x")])
        arrange(work / "x", work / "kernel")
        (work / "kernel").rename(directory)


def arrange(unpacked: Path, directory: Path) -> None:
    """One layout out of Debian's two (files in /boot and /lib, or all in /usr/lib/modules), with depmod run."""
    modules = next((m for m in (unpacked / "lib/modules", unpacked / "usr/lib/modules") if m.is_dir()), None)
    releases = [] if modules is None else [path for path in modules.iterdir() if path.is_dir()]
    if len(releases) != 1:
        raise FetchError(f"expected the modules of one kernel, found {[path.name for path in releases]}")
    release = releases[0].name
    vmlinuz = next((v for v in (unpacked / f"boot/vmlinuz-{release}", releases[0] / "vmlinuz") if v.is_file()), None)
    if vmlinuz is None:
        raise FetchError(f"the packages of {release} hold no vmlinuz")
    (directory / "boot").mkdir(parents=True)
    (directory / "lib/modules").mkdir(parents=True)
    shutil.move(vmlinuz, directory / f"boot/vmlinuz-{release}")
    shutil.move(releases[0], directory / f"lib/modules/{release}")
    apt.run(["depmod", "-b", str(directory), release])
