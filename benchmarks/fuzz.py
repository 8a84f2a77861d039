"""Flips bytes of BTF and DWARF and asks our readers: never another error, never no end, never an offset made up.

``python -m benchmarks.fuzz [--seconds N] [TARGET]...``. What is still answered after a flip is
compared with another reader of the same damaged file, libbpf or drgn: a flipped offset is read as flipped by both.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from benchmarks.fuzz_targets import TARGETS, Rivals, Target, vmlinux
from benchmarks.measure import REPOSITORY
from kcompat.errors import BadInput, KcompatError
from offset_db.harvest_file import MEMORY_LIMIT

# Of the processor's time: a reader that waits for the disk, or for others, is not lost.
_PATIENCE_S = 20.0
_LAST_WORDS_S = 60.0
_VALUES = (0, 1, 4, 0x7F, 0x80, 0xFF)


class Endless(Exception):
    """A reader has not come back."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What went wrong, and how to see it again: the bytes that were changed."""

    fault: str
    flips: Mapping[int, int]


def fuzz(target: Target, rivals: Rivals, seed: int, *, seconds: float,
         most: int | None = None) -> tuple[Counter[str], list[Finding]]:
    """Damages the target again and again; it is whole between the rounds and afterwards."""
    chance, seen, findings = random.Random(seed), Counter[str](), []
    end = time.monotonic() + seconds
    while time.monotonic() < end and (most is None or seen["files"] < most):
        flips = _flips(chance, target)
        seen["files"] += 1
        with target.damaged(flips) as path:
            try:
                seen[_round(target, rivals, path)] += 1
            except Exception as error:  # whatever it is, it is what we look for
                findings.append(Finding(f"{type(error).__name__}: {error}", flips))
    return seen, findings


def _flips(chance: random.Random, target: Target) -> dict[int, int]:
    """Place in the file -> new byte: one to four of them, in the parts that are read."""
    flips = {}
    for _ in range(chance.randint(1, 4)):
        part = chance.choice(target.parts)
        flips[chance.randrange(part.start, part.stop)] = chance.choice((*_VALUES, chance.randrange(256)))
    return flips


def _round(target: Target, rivals: Rivals, path: Path) -> str:
    """What came of one damaged file. Raises what should not have happened."""
    started = time.process_time()
    try:
        ours = _patiently(lambda: target.ours(path))
    except BadInput as error:
        if "MemoryError" in str(error):
            raise
        return "refused"
    except KcompatError as error:
        raise AssertionError(f"not called bad input: {error!r}") from error
    if (spent := time.process_time() - started) > _PATIENCE_S / 2:
        raise Endless(f"an answer after {spent:.1f} s")
    if not ours:
        return "nothing left to tell"
    theirs = rivals.places(target, path)
    if theirs is None:
        return f"told; {target.rival} refuses the file"
    made_up = {name: (at, theirs.get(name)) for name, at in ours.items() if theirs.get(name) != at}
    if made_up:
        raise AssertionError(f"{target.rival} reads otherwise, ours first: {made_up}")
    return f"told as {target.rival} reads it"


def _patiently(work: Callable[[], Mapping[str, int]]) -> Mapping[str, int]:
    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise Endless(f"no answer after {_PATIENCE_S:g} s of processor time")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, _PATIENCE_S)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@click.command()
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option("--seconds", type=click.FloatRange(min=1), default=60.0, show_default=True, help="For each target.")
@click.option("--seed", type=int, default=None, help="To see a finding again. Default: another one each time.")
def main(names: tuple[str, ...], seconds: float, seed: int | None) -> None:
    """Flip bytes of BTF and DWARF under our readers. TARGET: btf, kernel-btf, dwarf-4, dwarf-5, dwarf-5-types, or the
    path of a vmlinux with DWARF, which is changed in place: give it a copy. Default: all but that one.

    Each runs in a process of its own that may take 2 GiB. Exit 1: something was found; it is printed.
    """
    found = 0
    for name in names or TARGETS:
        chosen = random.randrange(1 << 32) if seed is None else seed
        command = [sys.executable, "-m", "benchmarks.fuzz", "worker", name, str(chosen), str(seconds)]
        # A worker that dies or hangs is a finding as well.
        try:
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False,
                                  timeout=seconds + _LAST_WORDS_S)
            told = done.stdout or f"ended with {done.returncode}: {done.stderr.strip()[-500:]}\n"
            found += done.returncode != 0
        except subprocess.TimeoutExpired:
            told, found = "no end\n", found + 1
        click.echo(f"{name}, seed {chosen}: {told}", nl=False)
    sys.exit(min(found, 1))


def worker(name: str, seed: int, seconds: float) -> int:
    # As a worker of a harvest is bounded: what a file is mapped to does not count.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    with tempfile.TemporaryDirectory(prefix="kcompat-fuzz-") as directory, Rivals(Path(directory)) as rivals:
        target = TARGETS[name](Path(directory)) if name in TARGETS else vmlinux(Path(name))
        seen, findings = fuzz(target, rivals, seed, seconds=seconds)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = ", ".join(f"{count} {what}" for what, count in seen.most_common())
    sys.stdout.write(f"{told}; {len(findings)} findings; peak {peak_mb:.0f} MB\n")
    for finding in findings[:20]:
        sys.stdout.write(json.dumps({"fault": finding.fault, "flips": dict(finding.flips)}) + "\n")
    return 1 if findings else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        sys.exit(worker(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    main(prog_name="python -m benchmarks.fuzz")
