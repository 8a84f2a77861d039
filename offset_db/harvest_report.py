"""What reading one file for its offsets gave: values that travel from a worker to whoever records them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from kcompat.kernel import Kernel
from kcompat.offsets import Offset

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


def fingerprint(path: Path) -> Fingerprint:
    """Raises OSError when the file cannot be read."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        return Fingerprint(found.st_size, found.st_mtime_ns, hashlib.sha256(file.read(_HEAD)).hexdigest())
