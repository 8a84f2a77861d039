"""The matrix: the one place that lists the kernels we boot."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Entry:
    """A kernel to be had from Debian: whatever build is newest among the packages that match."""

    name: str
    suites: tuple[str, ...]
    package: str
    """Regular expression the whole package name must match; signed and unsigned builds are the same kernel."""
    flavour: str
    machine: str


DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

MATRIX = (
    Entry(
        name="5.10",
        suites=("bullseye-security", "bullseye"),
        package=r"linux-image-5\.10\.0-\d+-amd64(-unsigned)?",
        flavour="generic",
        machine="x86_64",
    ),
    Entry(
        name="6.1",
        suites=("bookworm-security", "bookworm"),
        package=r"linux-image-6\.1\.0-\d+-amd64(-unsigned)?",
        flavour="generic",
        machine="x86_64",
    ),
    Entry(
        name="6.12",
        suites=("trixie-security", "trixie", "bookworm-backports"),
        package=r"linux-image-6\.12\.\d+\+deb\d+(\.\d+)?-amd64(-unsigned)?",
        flavour="generic",
        machine="x86_64",
    ),
    Entry(
        name="newest",
        suites=("trixie-backports", "forky", "sid", "experimental"),
        package=r"linux-image-([7-9]|\d\d)\.\d+(\.\d+)?(\+deb\d+(\.\d+)?)?-amd64(-unsigned)?",
        flavour="generic",
        machine="x86_64",
    ),
)


def select(pattern: str, matrix: tuple[Entry, ...] = MATRIX) -> list[Entry]:
    """Entries whose name matches the glob, in the matrix's order: oldest kernel first."""
    return [entry for entry in matrix if fnmatchcase(entry.name, pattern)]
