"""Command line: ``python -m benchmarks`` measures everything and says which targets are met."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

import click

from benchmarks import (
    btf,
    database,
    delivery,
    dwarf,
    guess,
    harvest,
    http_overhead,
    matrix,
    reliability,
    report,
    resolve,
    soak,
    startup,
)
from benchmarks.measure import Repetitions, Result, load
from kcompat.errors import KcompatError, Missing

BENCHMARKS: dict[str, tuple[str, Callable[[Repetitions], Result]]] = {
    "guess": (guess.TITLE, guess.run),
    "reliability": (reliability.TITLE, reliability.run),
    "resolve": (resolve.TITLE, resolve.run),
    "btf": (btf.TITLE, btf.run),
    "dwarf": (dwarf.TITLE, dwarf.run),
    "harvest": (harvest.TITLE, harvest.run),
    "database": (database.TITLE, database.run),
    "delivery": (delivery.TITLE, delivery.run),
    "startup": (startup.TITLE, startup.run),
    "http_overhead": (http_overhead.TITLE, http_overhead.run),
    "soak": (soak.TITLE, soak.run),
    "matrix": (matrix.TITLE, matrix.run),
}
# What they read may not lie about, a debug package of half a gigabyte or a run of the matrix: said in the table, not
# an error.
_IF_AT_HAND = frozenset(("btf", "delivery", "dwarf", "harvest", "http_overhead", "matrix"))


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)), metavar="[NAME]...")
@click.option("--list", "only_list", is_flag=True, help="Say what there is, measure nothing.")
@click.option("-n", "--repetitions", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("--patience", type=click.FloatRange(min=0), default=3.0, show_default=True,
              help="Seconds to wait, before each repetition, for a moment in which nobody else is at work.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output, samples included.")
@click.option("--write-docs", is_flag=True, help=f"Write {report.DOCS.name} too, or of it the sections of each NAME.")
def main(names: tuple[str, ...], only_list: bool, repetitions: int, patience: float, as_json: bool,
         write_docs: bool) -> None:
    """Measure kcompat beside its rivals on this kernel, as root. NAME: one of --list; default: all.

    A target that is not met is printed, and is no error: exit 0. Exit 1: a measurement failed; 2: not root, or
    something is not installed; 3: this kernel does not let us.

    \b
    Examples:
      sudo .venv/bin/python -m benchmarks
      sudo .venv/bin/python -m benchmarks guess -n 30
      sudo .venv/bin/python -m benchmarks --write-docs
      .venv/bin/python -m benchmarks delivery --write-docs
      sudo .venv/bin/python -m benchmarks resolve --json | jq '.benchmarks.resolve.lines[0]'
    """
    if only_list:
        for name, (title, _) in BENCHMARKS.items():
            click.echo(f"{name}\t{title}")
        return
    try:
        results = [_run(name, Repetitions(repetitions, patience), asked=name in names) for name in names or BENCHMARKS]
    except KcompatError as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(error.exit_code)
    if write_docs:
        try:
            report.DOCS.parent.mkdir(exist_ok=True)
            report.DOCS.write_text(report.renewed(report.DOCS.read_text(), results, repetitions) if names
                                   else report.markdown(results, repetitions))
        except OSError as error:
            failed = Missing(f"{report.DOCS}: {error.strerror}")
            click.echo(f"benchmarks: {failed}", err=True)
            sys.exit(failed.exit_code)
    if as_json:
        click.echo(json.dumps({"machine": report.machine(), "kernel": os.uname().release,
                               "repetitions": repetitions,
                               "benchmarks": {r.name: r.as_json() for r in results}}, indent=2))
    else:
        click.echo(report.text(results), nl=False)


def _run(name: str, repetitions: Repetitions, *, asked: bool) -> Result:
    title, work = BENCHMARKS[name]
    try:
        return work(repetitions)
    except Missing as error:
        if asked or name not in _IF_AT_HAND:
            raise
        return Result(name, title, (), (f"not measured: {error}",), (load(), load()), 0, 0)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
