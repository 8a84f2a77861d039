"""Runs the product on this machine as a user would: `ci` imports none of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from ci.judge import Dwarf
from ci.verdict import last_lines

KCOMPAT = Path(sys.executable).with_name("kcompat")
DEADLINE_S = 600.0


class ProductError(Exception):
    """The product did not do what it was asked for; the message is its own last line."""


def read_dwarf(vmlinux: Path, judge: str = "dwarf") -> tuple[Dwarf, str | None]:
    """What DWARF says of a kernel, and the same as JSON Lines of an offset database."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kcompat-dwarf-") as directory:
        database = ("--db", str(Path(directory) / "offsets.db"))
        try:
            asked = ("resolve", "--source", "dwarf", "--vmlinux", str(vmlinux), "--json")
            # 1: a field stays unknown, which is an answer too.
            said = kcompat(*database, *asked, status=(0, 1))
            exported = kcompat(*database, "db", "export")
        except ProductError as error:
            return Dwarf(None, str(error), time.monotonic() - begun, name=judge), None
    return Dwarf(json.loads(said), "", time.monotonic() - begun, name=judge), exported


def catalogue() -> dict[str, list[str]]:
    """``STRUCT.MEMBER`` of every field, and the paths that lead to it in C, newest first. Raises ProductError."""
    code = "import json; from kcompat.fields import CATALOGUE; print(json.dumps({f.name: f.paths for f in CATALOGUE}))"
    paths: dict[str, list[str]] = json.loads(_python(code))
    return paths


def identity(vmlinuz: Path) -> dict[str, str | None]:
    """Which kernel a boot image is of, as ``kcompat info --json`` has it. Raises ProductError."""
    code = ("import json, pathlib, sys; from offset_db.harvest_file import kernel_within; "
            "print(json.dumps(kernel_within(pathlib.Path(sys.argv[1])).as_json()))")
    kernel: dict[str, str | None] = json.loads(_python(code, str(vmlinuz)))
    return kernel


def remember(database: Path, exports: Iterable[str]) -> None:
    """Takes exported JSON Lines into an offset database. Raises ProductError."""
    with tempfile.TemporaryDirectory(prefix="kcompat-import-") as directory:
        files = []
        for number, lines in enumerate(exports):
            files.append(Path(directory) / f"{number}.jsonl")
            files[-1].write_text(lines)
        if files:
            database.parent.mkdir(parents=True, exist_ok=True)
            kcompat("--db", str(database), "db", "import", *map(str, files))


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=False, timeout=DEADLINE_S)
    if done.returncode:
        raise ProductError(next(iter(last_lines(done.stderr, 1)), "it said nothing"))
    return done.stdout


def kcompat(*arguments: str, status: Iterable[int] = (0,), environment: Mapping[str, str] | None = None) -> str:
    """What the command prints. Raises ProductError for any other exit status than these."""
    # Should we be killed, it has nobody to tell.
    command = ["setpriv", "--pdeathsig", "TERM", str(KCOMPAT), *arguments]
    try:
        done = subprocess.run(command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise ProductError(f"kcompat did not end within {DEADLINE_S:.0f} s") from error
    except OSError as error:
        raise ProductError(f"cannot run {KCOMPAT}: {error.strerror}") from error
    if done.returncode not in status or (done.returncode and not done.stdout):
        words = next(iter(last_lines(done.stderr, 1)), "it said nothing")
        raise ProductError(f"kcompat ended with {done.returncode}: {words}")
    return done.stdout
