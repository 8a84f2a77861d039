"""Command line: ``python -m ci -k 5.10`` fetches a kernel, boots it and runs a command in it."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ci import kernels
from ci.fetch import cache_dir
from ci.job import Job
from ci.matrix import Result, run_entry
from ci.verdict import Outcome, exit_code, last_lines, printable

REPOSITORY = Path(__file__).resolve().parent.parent
# The guest's root is read-only: pytest's cache and compiled files have nowhere to go.
DEFAULT_COMMAND = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/kernel")
GUEST_ENVIRONMENT = {
    "KCOMPAT_REQUIRE_KERNEL": "1",
    # Without KVM everything takes ten to twenty times as long; the long run is for the machine itself.
    "KCOMPAT_GUESS_RUNS": "5",
    "PYTHONDONTWRITEBYTECODE": "1",
}
COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.UNKNOWN: "yellow"}


class DefaultsToRun(click.Group):
    """``python -m ci -k 5.10`` is short for ``python -m ci run -k 5.10``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultsToRun)
def main() -> None:
    """Boot real kernels in QEMU and run the kernel tests, or any command, in each.

    \b
    Examples:
      python -m ci list
      python -m ci -k 5.10
      python -m ci run -k '6.*' --deadline 600 --json
      python -m ci -k newest -v -- uname -a
    """


@main.command("list")
def list_kernels() -> None:
    """The kernels of the matrix and the Debian suites they come from.

    \b
    Example:
      python -m ci list
    """
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "machine", "flavour", "suites"):
        table.add_column(heading)
    for entry in kernels.MATRIX:
        table.add_row(entry.name, entry.machine, entry.flavour, " ".join(entry.suites))
    Console().print(table)


@main.command()
@click.option("-k", "pattern", default="*", metavar="PATTERN", help="Kernels to run, a glob of names. Default: all.")
@click.option("--deadline", type=click.FloatRange(min=1), default=900.0, show_default=True, help="Seconds per kernel.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("-v", "--verbose", is_flag=True, help="Show the guest's console on standard error as it comes.")
@click.option("--append", multiple=True, metavar="ARG", help="One more kernel argument; may be repeated.")
@click.option("--memory", default="2G", show_default=True, help="The guest's memory.")
@click.option("--cpus", type=click.IntRange(min=1), default=2, show_default=True, help="The guest's processors.")
@click.option("--logs", type=click.Path(path_type=Path, file_okay=False), help="Console logs. Default: in the cache.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    pattern: str,
    deadline: float,
    as_json: bool,
    verbose: bool,
    append: tuple[str, ...],
    memory: str,
    cpus: int,
    logs: Path | None,
    command: tuple[str, ...],
) -> None:
    """Boot kernels and run COMMAND in each; without one, the tests in tests/kernel.

    COMMAND runs as root in the repository's directory and sees this machine's files, read-only or as a copy.
    Exit status: 0 everything passed, 1 something failed, 3 something could not be told.

    \b
    Examples:
      python -m ci run -k 5.10
      python -m ci run -k '6.*' --deadline 600 --json
      python -m ci run -k newest -v -- .venv/bin/python -c 'import bcc'
    """
    entries = kernels.select(pattern)
    if not entries:
        names = ", ".join(entry.name for entry in kernels.MATRIX)
        raise click.BadParameter(f"no kernel is called {pattern!r}; there are {names}", param_hint="-k")
    logging.basicConfig(format="%(message)s", level=logging.INFO if verbose else logging.WARNING)
    # As Ctrl-C does, so that the VM's end is in one place.
    signal.signal(signal.SIGTERM, _interrupt)
    cache = cache_dir()
    job = Job(command or DEFAULT_COMMAND, REPOSITORY, deadline, GUEST_ENVIRONMENT, append, memory, cpus)
    results = []
    for entry in entries:
        with _progress(entry.name, verbose) as progress:
            log = (logs or cache / "logs").absolute() / f"{entry.name}.log"
            results.append(run_entry(entry, job, cache, log, progress))
        if not as_json:
            _show(results[-1], with_console=not verbose)
    if as_json:
        print(json.dumps({"kernels": [result.as_json() for result in results]}, indent=2))
    sys.exit(exit_code(result.verdict.outcome for result in results))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _progress(name: str, verbose: bool) -> Iterator[Callable[[str], None]]:
    """What to do with console text: pass it on, or on a terminal show its last line under a clock."""
    terminal = Console(stderr=True)
    if verbose or not terminal.is_terminal:
        yield (lambda text: click.echo(text, nl=False, err=True)) if verbose else (lambda text: None)
        return
    begun, line = time.monotonic(), "fetching"
    with terminal.status(f"{name}: {line}") as status:

        def update(text: str) -> None:
            nonlocal line
            line = next(iter(last_lines(text, 1)), line)
            clock = f"{time.monotonic() - begun:4.0f} s"
            status.update(f"{escape(name)} {clock}  {escape(line[: max(10, terminal.width - len(name) - 14)])}")

        yield update


def _show(result: Result, with_console: bool) -> None:
    """One line per kernel, and the end of the console where it did not pass."""
    terminal = Console(highlight=False, soft_wrap=True)
    outcome, run, image = result.verdict.outcome, result.run, result.image
    times = f", boot {run.boot_s:.1f} s" if run and run.boot_s is not None else ""
    total = f" ({run.total_s:.1f} s{times})" if run else ""
    release = f" {image.release}" if image else ""
    what = f"[{COLOURS[outcome]}]{outcome.value}[/]: {escape(printable(result.verdict.reason))}"
    terminal.print(f"{escape(result.entry.name)}{escape(release)}: {what}{total}")
    for note in image.notes if image else ():
        terminal.print(f"  note: {escape(printable(note))}")
    if outcome is not Outcome.PASS and run and with_console:
        for line in run.tail.splitlines():
            terminal.print(f"  | {escape(line)}")
        terminal.print(f"  whole console: {escape(str(run.log))}")


if __name__ == "__main__":
    main(prog_name="python -m ci")
