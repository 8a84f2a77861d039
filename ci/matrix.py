"""One kernel of the matrix from its name to its result: fetched, booted, every check made and judged."""

from __future__ import annotations

import base64
import gzip
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from ci import offsetof
from ci.ahead import GUEST_CACHE, Ahead, compiled
from ci.apt import FetchError
from ci.build import build
from ci.debug import with_dwarf
from ci.fetch import Image, cache_dir, fetch
from ci.given import Given
from ci.given import obtain as take
from ci.guest import STEPS
from ci.headers import JUDGE, with_headers
from ci.job import Job, Kernel, Run
from ci.judge import Dwarf, Recording, build_id, exported, judge, recorded
from ci.kernels import ALL_TESTS, Built, Entry
from ci.product import read_dwarf
from ci.results import CHECKS, Check, KernelResult
from ci.verdict import Outcome
from ci.vm import boot

REPOSITORY = Path(__file__).resolve().parent.parent
GUEST_ENVIRONMENT = {
    "KCOMPAT_REQUIRE_KERNEL": "1",
    # Without KVM everything takes ten to twenty times as long; the long run is for the machine itself.
    "KCOMPAT_GUESS_RUNS": "5",
    "PYTHONDONTWRITEBYTECODE": "1",
}
# Of a kernel's time: what its shutdown may take, when the steps have used up theirs.
SHUTDOWN_S = 30.0

Kind: TypeAlias = Entry | Built | Given
Progress: TypeAlias = Callable[[str, str], None]
"""Told the phase (fetch, boot, or a step's name) and console text."""


@dataclass(frozen=True)
class Limits:
    """What each kernel gets, the same for all."""

    deadline_s: float = 900.0
    kernel_arguments: tuple[str, ...] = ()
    memory: str = "2G"
    cpus: int = 2
    dwarf: bool = False
    """Whether Debian's debug packages are fetched too, to judge what BTF judges once more."""
    thorough: bool = False
    """Whether the tests marked so run in guests too, which takes minutes for each kernel."""


@dataclass(frozen=True)
class Yield:
    """All that one kernel gave: its result, what was learnt of its offsets as JSON Lines, and its guess, recorded."""

    result: KernelResult
    exports: tuple[str, ...] = ()
    recording: Recording | None = None


def origin(kernel: Kind) -> str:
    if isinstance(kernel, Entry):
        return kernel.distribution
    return "built" if isinstance(kernel, Built) else "given"


def obtain(kernel: Kind, cache: Path, progress: Callable[[str], None]) -> Image:
    """The kernel itself, on this machine. Raises FetchError."""
    match kernel:
        case Given():
            return take(kernel, cache)
        case Built():
            return build(kernel, cache, progress)
        case _:
            return fetch(kernel, cache)


def bootable(kernel: Kind, image: Image) -> Kernel:
    none_needed = isinstance(kernel, Built) or (isinstance(kernel, Given) and kernel.modules is None)
    modules = None if none_needed else image.vmlinuz.parent.parent / "lib/modules" / image.release
    return Kernel(image.vmlinuz, image.release, modules, kernel.machine)


def unknown(entry: Kind, first: str, reason: str) -> KernelResult:
    """The result of a kernel whose checks cannot be told from the ``first`` one on."""
    checks = tuple(
        Check(name, Outcome.UNKNOWN, reason if name == first else f"no {first}")
        for name in CHECKS[CHECKS.index(first):] if name not in ("dwarf", "headers")
    )
    return KernelResult(entry.name, entry.machine, entry.flavour, origin=origin(entry), checks=checks)


def check_kernel(entry: Kind, limits: Limits, log: Path, progress: Progress) -> Yield:
    """Everything that is asked of one kernel. What goes wrong with it is in the result, never an exception."""
    begun = time.monotonic()
    progress("fetch", "")
    try:
        image = obtain(entry, cache_dir(), lambda text: progress("fetch", text))
        if isinstance(entry, Entry):
            image = _judged(entry, image, limits)
    except FetchError as error:
        return Yield(unknown(entry, "fetch", str(error)))
    fetched = Check("fetch", Outcome.PASS, "", round(time.monotonic() - begun, 2))
    dwarf, dwarf_export = read_dwarf(image.vmlinux, image.judge) if image.vmlinux else (None, None)
    if dwarf and image.layout:
        dwarf = dwarf.corrected(offsetof.load(image.layout))
    progress("compile", "")
    ahead = compiled(image.vmlinux or image.vmlinuz, entry.machine, cache_dir())
    progress("boot", "")
    run = boot(bootable(entry, image), _job(entry, limits, dwarf, ahead), log, _phases(progress))
    checks, fields = judge(run, dwarf)
    steps_s = {"compile": round(ahead.seconds, 2), **{step.name: step.seconds for step in run.steps}}
    result = _described(entry, image, run, (fetched, *checks))
    result = replace(result, fields=fields, build_id=build_id(run), steps_s=steps_s,
                     notes=(*result.notes, *ahead.notes, *_left_out(entry)))
    if image.judge == JUDGE:
        # A judge, and no source: a database is not told of it.
        dwarf_export = None
    return Yield(result, tuple(export for export in (exported(run), dwarf_export) if export), recorded(run, dwarf))


def _judged(entry: Entry, image: Image, limits: Limits) -> Image:
    """With a second judge beside BTF, or the only one: Ubuntu's debug packages are not in its archive."""
    if entry.distribution == "ubuntu":
        return with_headers(entry, image, cache_dir())
    return with_dwarf(entry, image, cache_dir()) if limits.dwarf else image


def _left_out(kernel: Kind) -> Iterator[str]:
    if (wanted := wanted_tests(kernel)) != ALL_TESTS:
        yield f"of the tests only {' '.join(wanted)}"


def run_command(entry: Kind, job: Job, log: Path, progress: Progress) -> KernelResult:
    """One kernel and one command in it instead of the checks."""
    begun = time.monotonic()
    progress("fetch", "")
    try:
        image = obtain(entry, cache_dir(), lambda text: progress("fetch", text))
    except FetchError as error:
        return unknown(entry, "fetch", str(error))
    fetched = Check("fetch", Outcome.PASS, "", round(time.monotonic() - begun, 2))
    run = boot(bootable(entry, image), job, log, lambda text: progress("boot", text))
    command = Check("command", run.verdict.outcome, run.verdict.reason, details={"status": run.verdict.exit_status})
    return _described(entry, image, run, (fetched, command))


def wanted_tests(kernel: Kind) -> tuple[str, ...]:
    return kernel.tests if isinstance(kernel, Entry) else ALL_TESTS


def _job(kernel: Kind, limits: Limits, dwarf: Dwarf | None, ahead: Ahead) -> Job:
    environment = {**GUEST_ENVIRONMENT, "KCOMPAT_CACHE": GUEST_CACHE,
                   "KCOMPAT_CI_TESTS": shlex.join(wanted_tests(kernel)),
                   "KCOMPAT_CI_SECONDS": f"{limits.deadline_s - SHUTDOWN_S:.0f}"}
    if limits.thorough:
        environment["KCOMPAT_CI_THOROUGH"] = "1"
    if dwarf and dwarf.said:
        oracle = json.dumps(dwarf.said).encode()
        environment["KCOMPAT_CI_ORACLE"] = base64.b64encode(gzip.compress(oracle, mtime=0)).decode()
    command = (sys.executable, "-m", "ci.guest", *STEPS)
    return Job(command, REPOSITORY, limits.deadline_s, environment, limits.kernel_arguments, limits.memory, limits.cpus,
               ahead.files)


def _phases(progress: Progress) -> Callable[[str], None]:
    """Console text to progress: a line ``== NAME`` is where a step begins (``ci.guest``)."""
    phase = "boot"

    def told(text: str) -> None:
        nonlocal phase
        for line in text.splitlines():
            if line.startswith("== ") and line[3:].strip() in STEPS:
                phase = line[3:].strip()
        progress(phase, text)

    return told


def _described(entry: Kind, image: Image, run: Run, checks: tuple[Check, ...]) -> KernelResult:
    passed = all(check.outcome is Outcome.PASS for check in checks)
    return KernelResult(
        entry.name, entry.machine, entry.flavour, image.release, image.package, image.version, origin=origin(entry),
        notes=image.notes, checks=checks, boot_s=run.boot_s, total_s=round(run.total_s, 2),
        console=() if passed else tuple(run.tail.splitlines()), log=str(run.log) if run.log else None)
