"""`kcompat harvest`: many kernels' debug files into the database, with a progress bar and a summary."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from kcompat.cli_errors import say
from kcompat.cli_output import COLUMNS, emit, to_json
from kcompat.errors import KcompatError
from kcompat.printable import printable

if TYPE_CHECKING:
    from rich.progress import Task

    from offset_db.harvest import Ending, Outcome, Progress, Summary

# What a shell reports of a process that SIGTERM ended.
_TERMINATED = 128 + signal.SIGTERM
_HEADINGS: dict[Ending, str] = {"done": "harvested", "known": "known", "skipped": "skipped", "failed": "failed"}


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N",
              help="Worker processes. Default: one for each processor.")
@click.option("--scheduler", metavar="ADDRESS",
              help="A Dask scheduler whose workers are used instead, like tcp://HOST:8786. They need this kcompat, and "
                   "the files at the same paths.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def harvest(db: Path | None, paths: tuple[str, ...], jobs: int | None, scheduler: str | None, as_json: bool) -> None:
    """Read the offsets of many kernels out of debug files, into the database.

    PATH is a file, a directory with all below it, a pattern, or - for a list of paths on standard input. What a
    file is, its content says: vmlinux and .debug files, BTF, BTFHub's .btf.tar.xz, debug packages (.deb, .ddeb,
    .rpm), boot images with BTF in them; of x86_64 and arm64. Nothing is unpacked but into a nameless temporary
    file, and no more than 2 GiB of memory is used for one.

    Each kernel is committed as it comes. The same command again goes on where it stopped, and tries again what
    had failed. Exits with 1 if a file could not be harvested; the others are all the same.

    \b
    Examples:
      kcompat harvest linux-image-6.1.0-40-amd64-dbg_6.1.153-1_amd64.deb
      kcompat harvest /srv/btfhub-archive --jobs 8
      kcompat harvest /boot /usr/lib/debug --json
      kcompat harvest - --scheduler tcp://build1:8786
    """
    from offset_db.files import default_path
    from offset_db.harvest import default_jobs, summed_up
    from offset_db.harvest import harvest as harvested

    started = time.monotonic()
    outcomes: list[Outcome] = []
    with _unwound_by_sigterm(), _told() as tell:
        try:
            with closing(harvested(_expanded(paths), db or default_path(), jobs or default_jobs(), scheduler)) as run:
                for progress in run:
                    outcomes.append(progress.outcome)
                    tell(progress)
        except (KeyboardInterrupt, SystemExit):
            say(f"interrupted: what {_files(len(outcomes))} gave is kept; the same command goes on")
            raise
    summary = summed_up(outcomes, started)
    emit(summary_json(summary) if as_json else summary_text(summary))
    sys.exit(int(bool(summary.of("failed"))))


def summary_json(summary: Summary) -> str:
    def files(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
        return [{"path": o.path, "reasons": list(o.reasons), "kernels": [k.as_json() for k in o.kernels]}
                for o in outcomes]

    stats = {"files": len(summary.outcomes), "kernels": summary.kernels, "total_s": round(summary.seconds, 3)}
    return to_json({**{ending: files(summary.of(ending)) for ending in _HEADINGS}, "stats": stats})


def summary_text(summary: Summary) -> str:
    """Counts, and under them how often each reason was given; which file it was has been told by then."""
    return "".join(_summary_lines(summary))


def _summary_lines(summary: Summary) -> Iterator[str]:
    for ending, heading in _HEADINGS.items():
        outcomes = summary.of(ending)
        if not outcomes and ending != "done":
            continue
        yield f"{heading:<10} {_files(len(outcomes))}"
        if ending == "done":
            kernels = f"{summary.kernels} kernel{'' if summary.kernels == 1 else 's'}"
            yield f", {kernels} in {summary.seconds:.1f} s"
        yield "\n"
        reasons = Counter(reason for o in outcomes for reason in o.reasons)
        for reason, count in reasons.most_common():
            yield f"{'':<10} {shorten(f'{count} {printable(reason)}', COLUMNS - 11, placeholder='...')}\n"


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _expanded(paths: Iterable[str]) -> Iterator[str]:
    from offset_db.harvest_paths import listed

    for path in paths:
        if path == "-" and not sys.stdin:
            raise KcompatError("standard input is closed, and a list of paths was to come from it")
        yield from listed(sys.stdin.buffer.read()) if path == "-" else (path,)


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM stops the workers and tidies up, as Ctrl-C does; Python alone would just end."""
    def stop(*_: object) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _told() -> Iterator[Callable[[Progress], None]]:
    """Tells of each failed file in one line on standard error, and draws a bar there if that is a terminal."""
    if not (sys.stderr and sys.stderr.isatty()):
        yield lambda progress: _tell_faults(progress.outcome, say)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")

    console = Console(stderr=True, highlight=False, emoji=False, markup=False)
    with Bar(TextColumn("harvest"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
             TextColumn("{task.fields[failed]}", style="red"), console=console, transient=True) as bar:
        task = bar.add_task("harvest", total=None, failed="")
        failed = 0

        def tell(progress: Progress) -> None:
            nonlocal failed
            failed += progress.outcome.ending == "failed"
            _tell_faults(progress.outcome, lambda words: console.print(f"kcompat: {words}", soft_wrap=True))
            bar.update(task, total=progress.total, completed=progress.looked_at,
                       failed=f"{failed} failed" if failed else "")

        yield tell


def _tell_faults(outcome: Outcome, write: Callable[[str], None]) -> None:
    if outcome.ending == "failed":
        for reason in outcome.reasons:
            write(printable(f"{outcome.path}: {reason}"))
