"""Pass, fail or could not tell: judged from what the guest reported and how the VM ended, with no I/O."""

from __future__ import annotations

import base64
import enum
import gzip
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Outcome(enum.Enum):
    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "could not tell"


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reason: str
    exit_status: int | None = None


@dataclass(frozen=True)
class Step:
    """One thing the command in the guest did, in its own words (``ci.guest``)."""

    name: str
    seconds: float
    found: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """What the guest's report port said: the release once the command starts, steps, the exit status at the end."""

    release: str | None = None
    boot_s: float | None = None
    exit_status: int | None = None
    steps: tuple[Step, ...] = ()


_PANIC = re.compile(r"(Kernel panic - not syncing.*)")
# ci/initramfs.py says so before it gives up.
_NO_ROOT = re.compile(r"^\[ *\d+\.\d+\] kcompat: (no root: .*)", re.MULTILINE)
# A process the kernel killed takes its test down, but a kernel thread that oopses does not.
_OOPS = re.compile(r"^\[ *\d+\.\d+\] ((?:BUG: unable to handle|Oops: |general protection fault).*)", re.MULTILINE)


def parse_report(text: str, nonce: str) -> Report:
    """Lines ``NONCE start RELEASE UPTIME``, any ``NONCE step ...`` and, as the last thing, ``NONCE exit STATUS``."""
    prefix = re.escape(nonce)
    start = re.match(rf"{prefix} start (\S+) (\d+\.\d+)\r?\n", text) if nonce else None
    if start is None:
        return Report()
    lines = re.compile(rf"{prefix} step ([A-Za-z0-9+/=]+)\r?\n")
    steps, at = [], start.end()
    while line := lines.match(text, at):
        steps.append(unpack_step(line[1]))
        at = line.end()
    end = re.fullmatch(rf"{prefix} exit (\d{{1,3}})\r?\n", text[at:])
    status = int(end[1]) if end and int(end[1]) < 256 else None
    return Report(start[1], float(start[2]), status, tuple(step for step in steps if step))


def pack_step(step: Step) -> str:
    """One word for the report port, whatever the step found; ``unpack_step`` sees if a byte of it is lost."""
    raw = json.dumps([step.name, step.seconds, step.found]).encode()
    return base64.b64encode(gzip.compress(raw, mtime=0)).decode()


def unpack_step(word: str) -> Step | None:
    """None for what no guest of ours has packed: then the step is missing, which cannot pass for anything."""
    try:
        name, seconds, found = json.loads(gzip.decompress(base64.b64decode(word, validate=True)))
        return Step(str(name), float(seconds), dict(found))
    except (ValueError, TypeError, OSError, EOFError, zlib.error):
        return None


def judge(report: Report, console: str, release: str | None, deadline_passed_s: float | None) -> Verdict:
    """The verdict on a VM that is gone, by its report and the end of its console."""
    if deadline_passed_s is not None:
        if report.exit_status is not None:
            phase = "in shutdown"
        else:
            phase = "in boot" if report.release is None else "in the command"
        return Verdict(Outcome.UNKNOWN, f"deadline of {deadline_passed_s:g} s passed {phase}")
    panic = _PANIC.search(console)
    if panic:
        why = _NO_ROOT.search(console) or panic
        return Verdict(Outcome.UNKNOWN, printable(why[1]).strip())
    if report.release is None:
        return Verdict(Outcome.UNKNOWN, f"the VM ended before the command started: {_last_line(console)}")
    if release is not None and report.release != release:
        return Verdict(Outcome.UNKNOWN, f"the wrong kernel booted: {report.release}, not {release}")
    if report.exit_status is None:
        return Verdict(Outcome.UNKNOWN, f"the VM was lost while the command ran: {_last_line(console)}")
    if report.exit_status:
        return Verdict(Outcome.FAIL, f"exit status {report.exit_status}", report.exit_status)
    oops = _OOPS.search(console)
    if oops:
        return Verdict(Outcome.FAIL, f"the kernel oopsed: {printable(oops[1]).strip()}", 0)
    return Verdict(Outcome.PASS, "exit status 0", 0)


def last_lines(console: str, count: int) -> list[str]:
    """The last lines that say something, safe to show on a terminal."""
    lines = (printable(line).rstrip() for line in re.split(r"[\r\n]+", console))
    return [line for line in lines if line][-count:]


def printable(text: str) -> str:
    """A guest writes what it likes; escape sequences must not reach the terminal of whoever reads it."""
    text = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])", "", text)
    return "".join(char for char in text if char.isprintable() or char == "\t")


def _last_line(console: str) -> str:
    return next(iter(last_lines(console, 1)), "the console is empty")
