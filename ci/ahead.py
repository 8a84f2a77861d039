"""What a guest would compile is compiled here: without KVM its clang takes minutes for what takes us seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from ci.product import ProductError, kcompat
from ci.verdict import last_lines

REPOSITORY = Path(__file__).resolve().parent.parent
# Where the guest finds it: $KCOMPAT_CACHE. What is not there it compiles itself, and keeps there.
GUEST_CACHE = "/run/kcompat"
DEADLINE_S = 300.0


@dataclass(frozen=True)
class Ahead:
    """Files for the guest by their path there, what making them took, and why some were not made."""

    files: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def compiled(kernel: Path, machine: str, cache: Path) -> Ahead:
    """The product's programs for a kernel's boot image or vmlinux, and what tests/kernel builds.

    Offsets are read off the image, by a database of their own that ends here: an object is found by the C it was made
    of, so it is used only if what the guest learns of its kernel by itself makes the same C.
    """
    begun, objects = time.monotonic(), cache / "objects"
    paths: list[Path] = []
    notes = []
    with tempfile.TemporaryDirectory(prefix="kcompat-ahead-") as work:
        for make in (partial(_programs, kernel, machine, Path(work) / "offsets.db", objects),
                     partial(_tests, machine, objects)):
            try:
                paths += make()
            except ProductError as error:
                notes.append(f"not compiled ahead: {error}")
    files = {f"{GUEST_CACHE}/{path.relative_to(objects)}": path.read_bytes() for path in paths}
    return Ahead(files, time.monotonic() - begun, tuple(notes))


def _programs(kernel: Path, machine: str, database: Path, objects: Path) -> Iterable[Path]:
    environment = {"KCOMPAT_CACHE": str(objects)}
    kcompat("--db", str(database), "harvest", "--jobs", "1", str(kernel), status=(0, 1), environment=environment)
    # A kernel of which too little is known still gets the guess's program.
    said = kcompat("--db", str(database), "compile", "--machine", machine, "--json", status=(0, 1),
                   environment=environment)
    return [Path(program["path"]) for program in json.loads(said)["programs"] if program["path"]]


def _tests(machine: str, objects: Path) -> Iterable[Path]:
    _rewritten()
    made = _python("tests.kernel.ahead", machine, KCOMPAT_CACHE=str(objects))
    return [Path(line) for line in made.splitlines()]


@cache
def _rewritten() -> None:
    """What pytest makes of the tests' modules, the same for every kernel, beside them: the guest has the repository."""
    _python("pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", "tests/kernel", PYTHONDONTWRITEBYTECODE="")


def _python(module: str, *arguments: str, **environment: str) -> str:
    try:
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=REPOSITORY,
                              env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, check=False, timeout=DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise ProductError(f"{module} did not end within {DEADLINE_S:.0f} s") from error
    if done.returncode:
        raise ProductError(next(iter(last_lines(done.stderr, 1)), f"{module} said nothing"))
    return done.stdout
