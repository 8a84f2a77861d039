"""What package indexes of Debian and Ubuntu say: versions, parts of a kernel image, the builds an entry can take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ci.kernels import Entry

VersionKey: TypeAlias = tuple[int, tuple[tuple[tuple[int, ...], int], ...], tuple[tuple[tuple[int, ...], int], ...]]

_PART = re.compile(r"(linux-(?:binary|modules|base)-\d\S*)(?:\s*\(=\s*(\S+?)\))?")


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    depends: str = ""


@dataclass(frozen=True)
class Build:
    """One kernel in one suite: its image package first, then the parts the image is split into (6.19 and later)."""

    suite: str
    packages: tuple[Package, ...]

    @property
    def image(self) -> Package:
        return self.packages[0]


def parse_packages(text: str, name: re.Pattern[str]) -> Iterator[Package]:
    """Packages of an index (``Packages`` file) whose whole name matches."""
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line[0].isspace())
        if name.fullmatch(fields.get("Package", "")):
            yield Package(fields["Package"], fields.get("Version", ""), fields.get("Depends", ""))


def builds(entry: Entry, indexes: Iterable[tuple[str, str]]) -> list[Build]:
    """Builds of an entry from (suite, index text) pairs, newest first.

    An image whose parts are not all in the same index is left out: Debian drops linux-modules of old builds
    but keeps linux-image, and without modules there is no root file system.
    """
    wanted = re.compile(entry.package)
    kernel = re.compile(r"linux-(image(-unsigned)?|binary|modules|base)-\d.*")
    found = []
    for suite, text in indexes:
        packages = {(p.name, p.version): p for p in parse_packages(text, kernel)}
        for image in packages.values():
            if not wanted.fullmatch(image.name):
                continue
            parts = {name: packages.get((name, version or image.version))
                     for name, version in _PART.findall(image.depends)}
            complete = [part for part in parts.values() if part is not None]
            # What linux-base holds is for installing only: of 6.18 Debian keeps the image, modules and all, without it.
            if all(part or name.startswith("linux-base-") for name, part in parts.items()):
                found.append(Build(suite, (image, *complete)))
    # The signed package before the unsigned one of the same version: it is the one people run.
    found.sort(key=lambda b: (version_key(b.image.version), "-unsigned" not in b.image.name), reverse=True)
    return found


def version_key(version: str) -> VersionKey:
    """A key that sorts as ``dpkg --compare-versions`` does (Debian policy 5.6.12)."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch), _part_key(upstream), _part_key(revision)


def _part_key(part: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    end = ((0,), 0)
    pieces = [((*map(_order, text), 0), int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", part)]
    while pieces and pieces[-1] == end:
        pieces.pop()
    return (*pieces, end)


def _order(char: str) -> int:
    if char == "~":
        return -1
    return ord(char) if char.isalpha() else ord(char) + 256
