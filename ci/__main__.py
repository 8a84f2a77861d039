"""Command line: ``python -m ci -k 5.10`` fetches a kernel, boots it and makes every check of it."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.table import Table

from ci import kernels
from ci.cli_command import run_everywhere
from ci.given import Given, given_kernels
from ci.job import Job
from ci.kernels import Built, Entry
from ci.matrix import GUEST_ENVIRONMENT, REPOSITORY, Kind, Limits, origin
from ci.product import ProductError
from ci.results import MatrixResult, exit_code, joined
from ci.runs import Spread, default_jobs, run_matrix
from ci.scheduler import SchedulerError
from ci.store import Store, StoreError, default_store, load

# As a shell says of a program that Ctrl-C ended.
INTERRUPTED = 130
MATRIX: tuple[Entry | Built, ...] = (*kernels.MATRIX, *kernels.BUILT)


class DefaultsToRun(click.Group):
    """``python -m ci -k 5.10`` is short for ``python -m ci run -k 5.10``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultsToRun)
def main() -> None:
    """Boot real kernels in QEMU and see of each that every offset is right and the collector works.

    \b
    Examples:
      python -m ci list
      python -m ci -k 5.10
      python -m ci run -k '6.*' --deadline 600 --json
      python -m ci run --kernel-dir /srv/kernels --scheduler tcp://build1:8786
      python -m ci -k newest -v -- uname -a
    """


@main.command("list")
def list_kernels() -> None:
    """The kernels of the matrix and where they come from.

    \b
    Example:
      python -m ci list
    """
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "machine", "flavour", "origin", "suites"):
        table.add_column(heading)
    for entry in MATRIX:
        table.add_row(entry.name, entry.machine, entry.flavour, origin(entry), " ".join(entry.suites))
    Console().print(table)


@main.command()
@click.option("-k", "pattern", metavar="PATTERN",
              help="Kernels to run, a glob of names, or several with commas. Default: all.")
@click.option("--kernel", type=click.Path(path_type=Path, dir_okay=False), metavar="VMLINUZ", help="Run this kernel.")
@click.option("--modules", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Its modules.")
@click.option("--vmlinux", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Its debug information, a judge of every offset.")
@click.option("--kernel-dir", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Run the kernels below DIR: vmlinuz-* and lib/modules/*, as installed.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N",
              help="VMs at once. Default: as many as this machine has processors for.")
@click.option("--scheduler", metavar="ADDRESS",
              help="A Dask scheduler whose workers boot the kernels, like tcp://HOST:8786. They need this repository "
                   "and QEMU.")
@click.option("--dwarf", is_flag=True, help="Fetch Debian's debug packages too, up to a gigabyte each: a second judge.")
@click.option("--thorough", is_flag=True,
              help="Also the tests marked thorough, of which the kernel decides little: minutes more each.")
@click.option("--deadline", type=click.FloatRange(min=1), default=900.0, show_default=True, help="Seconds per kernel.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Results, offset database, recorded guesses and logs. Default: matrix in the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("-v", "--verbose", is_flag=True, help="Show the guest's console on standard error; with COMMAND only.")
@click.option("--append", multiple=True, metavar="ARG", help="One more kernel argument; may be repeated.")
@click.option("--memory", default="2G", show_default=True, help="A guest's memory.")
@click.option("--cpus", type=click.IntRange(min=1), default=2, show_default=True, help="A guest's processors.")
@click.option("--logs", type=click.Path(path_type=Path, file_okay=False), help="Console logs. Default: in the output.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    pattern: str | None, kernel: Path | None, modules: Path | None, vmlinux: Path | None, kernel_dir: Path | None,
    jobs: int | None, scheduler: str | None, dwarf: bool, thorough: bool, deadline: float, output: Path | None,
    as_json: bool, verbose: bool, append: tuple[str, ...], memory: str, cpus: int, logs: Path | None,
    command: tuple[str, ...],
) -> None:
    """Boot kernels and make every check of each: offsets guessed and judged, tests, a collector's flows.

    With COMMAND run that instead, as root in the repository's directory; it sees Debian, the repository and
    the kernel's modules, nothing else of this machine. Exit status: 0 everything passed, 1 something failed,
    3 something could not be told.

    \b
    Examples:
      python -m ci run -k 5.10
      python -m ci run -k '5.10,6.*' --deadline 600 --json
      python -m ci run --kernel arch/x86/boot/bzImage --modules /lib/modules/6.9.0 --vmlinux vmlinux
      python -m ci run -k newest -v -- .venv/bin/python -c 'import bcc'
    """
    chosen = _chosen(pattern, kernel, modules, vmlinux, kernel_dir)
    logging.basicConfig(format="%(message)s", level=logging.INFO if verbose else logging.WARNING)
    # As Ctrl-C does, so that the VMs' end is in one place.
    signal.signal(signal.SIGTERM, _interrupt)
    store = Store(output.absolute()) if output else default_store()
    logs = logs and logs.absolute()
    if command:
        if jobs or scheduler:
            raise click.UsageError("-j and --scheduler spread the checks; a COMMAND runs here, one kernel at a time")
        job = Job(command, REPOSITORY, deadline, GUEST_ENVIRONMENT, append, memory, cpus)
        try:
            sys.exit(run_everywhere(chosen, job, logs or store.logs, as_json=as_json, verbose=verbose))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
    spread = Spread(jobs or default_jobs(cpus), scheduler)
    try:
        limits = Limits(deadline, append, memory, cpus, dwarf, thorough)
        result = run_matrix(chosen, limits, spread, store, logs, Console(stderr=True))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (SchedulerError, ProductError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print(json.dumps(result.as_json(), indent=2))
    else:
        _show(result)
        print(f"results: {store.results}\noffsets: {store.database}")
    sys.exit(exit_code(k.outcome for k in result.kernels))


@main.command()
@click.argument("files", metavar="[FILE]...", type=click.Path(path_type=Path), nargs=-1)
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML there.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained page there.")
@click.option("--markdown", type=click.Path(path_type=Path, dir_okay=False), help="Write a table for the docs there.")
@click.option("--screenshot", type=click.Path(path_type=Path, dir_okay=False),
              help="Draw the page as PNG there, and dark as ...-dark.png; the Markdown shows it.")
def report(
    files: tuple[Path, ...], junit: Path | None, html: Path | None, markdown: Path | None, screenshot: Path | None
) -> None:
    """Show what a run found, for people or for other programs. FILE is what `run` wrote; default: the last run.

    Several files are parts of one matrix, and of a kernel in two of them the last one counts. Exit status is that of
    the run.

    \b
    Examples:
      python -m ci report
      python -m ci report --junit junit.xml --html report.html
      python -m ci report /srv/results/*/matrix.json
      python -m ci report --markdown docs/kernel-matrix.md --screenshot docs/kernel-matrix.png
    """
    from ci.report import write_html, write_junit, write_markdown, write_screenshot
    from ci.report_screenshot import BrowserError

    try:
        result = joined([load(file) for file in files or (default_store().results,)])
        if junit:
            write_junit(result, junit)
        if html:
            write_html(result, html)
        if screenshot:
            write_screenshot(result, screenshot)
        if markdown:
            write_markdown(result, markdown, screenshot)
    except (StoreError, BrowserError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
    _show(result)
    sys.exit(exit_code(k.outcome for k in result.kernels))


def _chosen(
    pattern: str | None, kernel: Path | None, modules: Path | None, vmlinux: Path | None, directory: Path | None
) -> Sequence[Kind]:
    """The user's kernels if there are any, and those of the matrix that are asked for."""
    if (modules or vmlinux) and kernel is None:
        raise click.UsageError("--modules and --vmlinux are of the kernel that --kernel names")
    chosen: list[Kind] = []
    if kernel:
        name = kernel.name.removeprefix("vmlinuz-")
        chosen.append(Given(name, kernel.absolute(), modules and modules.absolute(), vmlinux and vmlinux.absolute()))
    if directory:
        found = given_kernels(directory.absolute())
        if not found:
            raise click.BadParameter(f"no vmlinuz-* in {directory} or its boot directory", param_hint="--kernel-dir")
        chosen += found
    if pattern is not None or not chosen:
        try:
            chosen += kernels.select(pattern or "*", MATRIX)
        except LookupError as error:
            names = ", ".join(entry.name for entry in MATRIX)
            reason = f"no kernel is called {error.args[0]!r}; there are {names}"
            raise click.BadParameter(reason, param_hint="-k") from error
    if twice := [name for name, count in Counter(one.name for one in chosen).items() if count > 1]:
        raise click.UsageError(f"two kernels are called {twice[0]}: results and logs go by the name")
    return chosen


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(result: MatrixResult) -> None:
    from ci.report import show

    show(result, Console())


if __name__ == "__main__":
    main(prog_name="python -m ci")
