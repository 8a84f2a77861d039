"""Debian's kernel source in the cache: unpacked once, whole or not at all, and only read afterwards.

A tree has over a gigabyte. It may be deleted when its kernels are built: only a new build needs it, and fetches it.
"""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ci import apt
from ci.apt import FetchError
from ci.debian import Package, parse_packages, version_key
from ci.kernels import DEBIAN_ARCHITECTURES, Built

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A source package, the suite it is in and the directory its tree has, or would have."""

    package: Package
    suite: str
    tree: Path


def candidates(entry: Built, cache: Path) -> list[Source]:
    """The sources an entry can be built from, newest first. Raises FetchError where there is none."""
    wanted = re.compile(rf"linux-source-{re.escape(entry.source)}")
    found: dict[str, Source] = {}
    notes = []
    with apt.lock(cache):
        for suite in entry.suites:
            try:
                index = apt.index(suite, DEBIAN_ARCHITECTURES[entry.machine], cache)
            except FetchError as error:
                notes.append(f"{suite}: {error}")
                continue
            for package in parse_packages(index, wanted):
                tree = cache / "sources" / f"{package.name}_{package.version}"
                found.setdefault(package.version, Source(package, suite, tree))
    if not found:
        tried = "; ".join(notes) or f"no package in {', '.join(entry.suites)} matches {wanted.pattern}"
        raise FetchError(f"no source of {entry.name} is to be had: {tried}")
    return sorted(found.values(), key=lambda source: version_key(source.package.version), reverse=True)


def unpack(source: Source, machine: str, cache: Path) -> None:
    """Makes the tree if it is not there. Raises GoneError where the mirror has dropped the package."""
    source.tree.parent.mkdir(parents=True, exist_ok=True)
    with apt.lock(cache, f"lock-{source.tree.name}"):
        if source.tree.is_dir():
            return
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=source.tree.parent) as temporary:
            work = Path(temporary)
            with apt.lock(cache):
                deb = apt.download(source.package, source.suite, DEBIAN_ARCHITECTURES[machine], cache, work)
            log.info("unpacking %s %s", source.package.name, source.package.version)
            apt.run(["dpkg-deb", "-x", str(deb), str(work / "deb")])
            archive = work / f"deb/usr/src/{source.package.name}.tar.xz"
            if not archive.is_file():
                raise FetchError(f"{source.package.name} {source.package.version} holds no {archive.name}")
            (work / "tree").mkdir()
            apt.run(["tar", "-xf", str(archive), "-C", str(work / "tree"), "--strip-components=1"])
            (work / "tree").rename(source.tree)
