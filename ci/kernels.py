"""The matrix: the one place that lists the kernels we boot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

ALL_TESTS = ("tests/kernel",)


@dataclass(frozen=True)
class Entry:
    """A kernel to be had from a distribution: whatever build is newest among the packages that match."""

    name: str
    suites: tuple[str, ...]
    package: str
    """Regular expression the whole package name must match; signed and unsigned builds are the same kernel."""
    flavour: str
    machine: str
    tests: tuple[str, ...] = ALL_TESTS
    """What pytest is told to run in it."""
    distribution: str = "debian"
    """debian or ubuntu: whose suites and packages those are."""


@dataclass(frozen=True)
class Built:
    """A kernel of our own: Debian's source with our configuration. It has no BTF; its DWARF is the judge."""

    name: str
    suites: tuple[str, ...]
    source: str
    """The version in the name of the package: linux-source-VERSION."""
    fragments: tuple[str, ...]
    """Files of ci/fragments without their suffix; a later one overrides those before it."""
    seed: str = ""
    """What RANDSTRUCT shuffles by, where a fragment switches it on."""
    flavour: str = "own"
    machine: str = "x86_64"


K = TypeVar("K", "Entry", "Built", "Entry | Built")
DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_XENIAL = ("xenial-updates",)
_BIONIC = ("bionic-updates",)
_BULLSEYE = ("bullseye-security", "bullseye")
_BOOKWORM = ("bookworm-security", "bookworm")
_TRIXIE = ("trixie-security", "trixie", "bookworm-backports")
_BACKPORTS = ("trixie-backports", "bookworm-backports")
_LATER = ("trixie-backports", "forky", "sid", "experimental")

# Emulated, all of them take too long: what another machine can break is the registers of hooks, the programs that read
# them, and the offsets.
_ARM64_TESTS = ("tests/kernel/test_load.py", "tests/kernel/test_maps.py", "tests/kernel/test_netflow.py",
                "tests/kernel/test_guess.py::test_every_field_equals_btf")


def _ubuntu(version: str, suites: tuple[str, ...]) -> Entry:
    package = rf"linux-image-(unsigned-)?{re.escape(version)}\.0-\d+-generic"
    return Entry(f"{version}-ubuntu", suites, package, "generic", "x86_64", distribution="ubuntu")


# Ubuntu's are from before BTF, but the last, which has both: there its headers, the judge of the others, are judged.
# An rt kernel has other locks, and so other offsets.
MATRIX = (
    _ubuntu("4.4", _XENIAL),
    _ubuntu("4.15", _BIONIC),
    _ubuntu("5.0", _BIONIC),
    _ubuntu("5.3", _BIONIC),
    _ubuntu("5.4", _BIONIC),
    Entry("5.10", _BULLSEYE, r"linux-image-5\.10\.0-\d+-amd64(-unsigned)?", "generic", "x86_64"),
    Entry("5.10-cloud", _BULLSEYE, r"linux-image-5\.10\.0-\d+-cloud-amd64(-unsigned)?", "cloud", "x86_64"),
    Entry("5.10-rt", _BULLSEYE, r"linux-image-5\.10\.0-\d+-rt-amd64(-unsigned)?", "rt", "x86_64"),
    Entry("6.1", _BOOKWORM, r"linux-image-6\.1\.0-\d+-amd64(-unsigned)?", "generic", "x86_64"),
    Entry("6.1-cloud", _BOOKWORM, r"linux-image-6\.1\.0-\d+-cloud-amd64(-unsigned)?", "cloud", "x86_64"),
    Entry("6.1-arm64", _BOOKWORM, r"linux-image-6\.1\.0-\d+-arm64(-unsigned)?", "generic", "aarch64", _ARM64_TESTS),
    Entry("6.1-rt", _BOOKWORM, r"linux-image-6\.1\.0-\d+-rt-amd64(-unsigned)?", "rt", "x86_64"),
    Entry("6.12", _TRIXIE, r"linux-image-6\.12\.\d+\+deb\d+(\.\d+)?-amd64(-unsigned)?", "generic", "x86_64"),
    Entry("6.12-arm64", _TRIXIE, r"linux-image-6\.12\.\d+\+deb\d+(\.\d+)?-arm64(-unsigned)?", "generic", "aarch64",
          _ARM64_TESTS),
    Entry("6.12-rt", _TRIXIE, r"linux-image-6\.12\.\d+\+deb\d+(\.\d+)?-rt-amd64(-unsigned)?", "rt", "x86_64"),
    Entry("6.16", _BACKPORTS, r"linux-image-6\.16\.\d+\+deb\d+(\.\d+)?-amd64(-unsigned)?", "generic", "x86_64"),
    Entry("6.17", _BACKPORTS, r"linux-image-6\.17\.\d+\+deb\d+(\.\d+)?-amd64(-unsigned)?", "generic", "x86_64"),
    Entry("6.18", _BACKPORTS, r"linux-image-6\.18\.\d+\+deb\d+(\.\d+)?-amd64(-unsigned)?", "generic", "x86_64"),
    Entry("7.2", _LATER, r"linux-image-7\.2(\.\d+)?(\+deb\d+(\.\d+)?)?-amd64(-unsigned)?", "generic", "x86_64"),
    Entry("newest", _LATER, r"linux-image-([7-9]|\d\d)\.\d+(\.\d+)?(\+deb\d+(\.\d+)?)?-amd64(-unsigned)?", "generic",
          "x86_64"),
)

BUILT = (
    Built("5.10-randstruct-1", _BULLSEYE, "5.10", ("base", "nftables", "randstruct-plugin"), seed="1"),
    Built("5.10-noipv6", _BULLSEYE, "5.10", ("base", "noipv6")),
    Built("5.10-nonetns-noconntrack", _BULLSEYE, "5.10", ("base", "nonetns", "noconntrack")),
    Built("6.12-randstruct-2-up", _BOOKWORM, "6.12", ("base", "nftables", "randstruct", "up"), seed="2"),
    # Not an older one: tracepoints reach UDP sockets from 6.3 on.
    Built("6.12-nokprobes", _BOOKWORM, "6.12", ("base", "nftables", "nokprobes")),
    Built("6.12-nojit", _BOOKWORM, "6.12", ("base", "nftables", "nojit")),
)


def select(pattern: str, matrix: Sequence[K]) -> list[K]:
    """Entries whose name matches one of the globs, which commas part, in the matrix's order.

    Raises LookupError with a glob that matches none: a run that leaves one out without a word would be green.
    """
    globs = pattern.split(",")
    for glob in globs:
        if not any(fnmatchcase(entry.name, glob) for entry in matrix):
            raise LookupError(glob)
    return [entry for entry in matrix if any(fnmatchcase(entry.name, glob) for glob in globs)]
