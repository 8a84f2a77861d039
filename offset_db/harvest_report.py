"""What reading one file for its offsets gave: values that travel from a worker to whoever records them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db import rows, trust
from offset_db.rows import Row, Stored

# A catalogue with other fields finds other things in the same file, other columns are another kcompat's.
LOOKED_FOR = hashlib.sha256(repr(CATALOGUE).encode()).hexdigest()[:16]
SHAPE = hashlib.sha256(repr((rows.ANSWER, CATALOGUE)).encode()).hexdigest()[:16]

_HEAD = 1 << 16


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Tells a file from what lay at its path before: `head` is the SHA-256 of its first 64 KiB."""

    size: int
    mtime_ns: int
    head: str


@dataclass(frozen=True, slots=True)
class Found:
    """One kernel, and what every source in the file says of it."""

    kernel: Kernel
    offsets: tuple[Offset, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One file: kernels `found` in it, `faults` in a line each, or why there is `nothing` to find in it.

    `foreign` marks a file that is of no kind known here. `fingerprint` is None where it could not be read at all.
    """

    path: Path
    found: tuple[Found, ...] = ()
    faults: tuple[str, ...] = ()
    nothing: str | None = None
    foreign: bool = False
    fingerprint: Fingerprint | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A report with nothing left to do but to write it: each kernel with its rows of rows.ANSWER, made `at` that time.

    One process writes what all workers find: what it does not have to do, they share. `shape` is SHAPE of the kcompat
    that made it, which may be another machine's.
    """

    path: Path
    found: tuple[tuple[Kernel, tuple[Row, ...]], ...] = ()
    faults: tuple[str, ...] = ()
    nothing: str | None = None
    foreign: bool = False
    fingerprint: Fingerprint | None = None
    at: str = ""
    shape: str = SHAPE


def prepared(report: Report) -> Prepared:
    at = rows.now()
    found = tuple((one.kernel, tuple(rows.answer_row(Stored(o, at, trust.module_build_id(one.kernel, o.field)))
                                     for o in one.offsets)) for one in report.found)
    return Prepared(report.path, found, report.faults, report.nothing, report.foreign, report.fingerprint, at)


def fingerprint(path: Path) -> Fingerprint:
    """Raises OSError when the file cannot be read."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        return Fingerprint(found.st_size, found.st_mtime_ns, hashlib.sha256(file.read(_HEAD)).hexdigest())
