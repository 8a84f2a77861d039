"""One command in one kernel after the other, its console shown as it comes: for trying things out by hand."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from ci.job import Job
from ci.live import STYLES
from ci.matrix import Kind, Progress, run_command
from ci.results import KernelResult, exit_code
from ci.verdict import Outcome, last_lines, printable


def run_everywhere(kernels: Sequence[Kind], job: Job, logs: Path, *, as_json: bool, verbose: bool) -> int:
    """Runs the job in each kernel, tells what became of it and returns the exit status for all."""
    results = []
    for kernel in kernels:
        with _progress(kernel.name, verbose) as progress:
            results.append(run_command(kernel, job, logs / f"{kernel.name}.log", progress))
        if not as_json:
            _show(results[-1], with_console=not verbose)
    if as_json:
        print(json.dumps({"kernels": [as_plain(result) for result in results]}, indent=2))
    return exit_code(result.outcome for result in results)


@contextlib.contextmanager
def _progress(name: str, verbose: bool) -> Iterator[Progress]:
    """What to do with console text: pass it on, or on a terminal show its last line under a clock."""
    terminal = Console(stderr=True)
    if verbose or not terminal.is_terminal:
        yield (lambda phase, text: click.echo(text, nl=False, err=True)) if verbose else (lambda phase, text: None)
        return
    begun, line = time.monotonic(), ""
    with terminal.status(name) as status:

        def update(phase: str, text: str) -> None:
            nonlocal line
            line = next(iter(last_lines(text, 1)), line)
            clock = f"{time.monotonic() - begun:4.0f} s  {phase}"
            room = max(10, terminal.width - len(name) - len(clock) - 8)
            status.update(f"{escape(name)} {clock}  {escape(line[:room])}")

        yield update


def _show(result: KernelResult, with_console: bool) -> None:
    """One line per kernel, and the end of the console where it did not pass."""
    terminal = Console(highlight=False, soft_wrap=True)
    boot = "" if result.boot_s is None else f", boot {result.boot_s:.1f} s"
    total = "" if result.total_s is None else f" ({result.total_s:.1f} s{boot})"
    release = f" {result.release}" if result.release else ""
    what = f"[{STYLES[result.outcome]}]{result.outcome.value}[/]: {escape(printable(_why(result)))}"
    terminal.print(f"{escape(result.name)}{escape(release)}: {what}{total}")
    for note in result.notes:
        terminal.print(f"  note: {escape(printable(note))}")
    if result.outcome is not Outcome.PASS and with_console:
        for line in result.console:
            terminal.print(f"  | {escape(line)}")
        if result.log:
            terminal.print(f"  whole console: {escape(result.log)}")


def _why(result: KernelResult) -> str:
    command = result.check("command")
    return command.reason if command else result.reason


def as_plain(result: KernelResult) -> dict[str, object]:
    command = result.check("command")
    fetched = result.check("fetch")
    return {
        "name": result.name,
        "machine": result.machine,
        "flavour": result.flavour,
        "release": result.release,
        "package": result.package,
        "version": result.version,
        "notes": list(result.notes),
        "outcome": result.outcome.value,
        "reason": _why(result),
        "exit_status": command.details["status"] if command else None,
        "fetch_s": fetched.seconds if fetched else None,
        "boot_s": result.boot_s,
        "vm_s": result.total_s,
        "log": result.log,
    }
