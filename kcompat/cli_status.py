"""`kcompat status`: what a running collector sees, what it does not see and why, as a table."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kcompat.cli_output import cells, drawn, emit, to_json
from kcompat.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 80
_STYLES = {"attached": "green", "available": "dim", "degraded": "yellow", "missing": "red", "refused": "red"}


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), metavar="DIR",
              help="Where the collector has its lock and socket. Default: $KCOMPAT_RUN, else one's own, else "
                   "/run/kcompat, which is root's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(run_dir: Path | None, as_json: bool) -> None:
    """What the running collector sees, hook by hook, what it does not see and why, and what it lost.

    As of its last interval. Exits with 0 when all datasets run, 1 when one does not or only in part, 2 when no
    collector runs, 4 when only root may ask it.

    \b
    Examples:
      sudo kcompat status
      sudo kcompat status --json
    """
    from collector.instance import ask, ask_any

    told = ask(run_dir) if run_dir else ask_any()
    emit(to_json(told) if as_json else status_text(told, time.time()))
    sys.exit(0 if all(one["state"] == "attached" for one in told["datasets"]) else 1)


def status_text(told: Mapping[str, Any], now_s: float) -> str:
    """The table of hooks, then what there is to say in words."""
    from collector.status import Status

    told = Status.completed(told)
    sources = ", ".join(f"{count} from {source}" for source, count in told["offsets"].items()) or "none needed"
    lines = [f"pid {told['pid']} on {told['host']}, {told['kernel']}, for {_age(now_s - told['started_s'])}; "
             f"as of {_age(now_s - told['taken_s'])} ago",
             f"offsets: {sources}; every {told['interval_s']:g} s, {told['flushes']} flushes, "
             f"{told['reloads']} reloads"]
    for one in told["datasets"]:
        lost = ", ".join(f"{count} {what}" for what, count in one["lost"].items() if count) or "nothing"
        lines.append(f"{one['dataset']}: {one['records']} records, lost: {lost}")
        if one["reason"]:
            retry = f"; tried again in {one['retry_in_s']:.0f} s" if one["retry_in_s"] is not None else ""
            lines.append(f"  {one['state']}: {one['reason']}{retry}")
    sizes = {one["dataset"]: one["map_bytes"] for one in told["datasets"] if one["hooks"] and one["map_bytes"] != 0}
    if sizes:
        parts = [f"{name} {'unknown' if size is None else f'{size / 1e6:.1f} MB'}" for name, size in sizes.items()]
        lines.append(f"kernel memory of maps: {', '.join(parts)}")
    if cluster := told.get("kubernetes"):
        lines.append(_cluster_text(cluster))
    if nat := told.get("nat"):
        lines.append(_nat_text(nat))
    lines += [f"{sink['name']}: {sink['written']} written, {sink['waiting']} waiting, {sink['dropped']} dropped"
              for sink in told["sinks"]]
    table = hooks_table([*told["datasets"], *_nat_rows(told.get("nat"))])
    return table + "".join(f"{printable(line)}\n" for line in "\n".join(lines).split("\n"))


def _cluster_text(cluster: Mapping[str, Any]) -> str:
    """What is known of the cluster, or what keeps it from being told of."""
    kinds = cluster["kinds"]
    failures = cluster["failures"] + sum(kind["failures"] for kind in kinds)
    wrong = f"; {failures} failures, the last: {cluster['error']}" if failures else ""
    heard = [kind["silent_s"] for kind in kinds if kind["silent_s"] is not None]
    if not heard:
        return f"kubernetes: nothing heard of {cluster['server'] or 'an API server'} yet{wrong}"
    objects = ", ".join(f"{kind['objects']} {kind['kind']}" for kind in kinds if kind["objects"])
    missing = ", ".join(kind["kind"] for kind in kinds if not kind["listed"])
    return (f"kubernetes: {'told of' if cluster['told'] else 'not told of, too little is known'}: "
            f"{objects or 'no objects'} of {cluster['server']}, heard {_age(min(heard))} ago"
            f"{f'; not listed: {missing}' if missing else ''}{wrong}")


def _nat_text(nat: Mapping[str, Any]) -> str:
    if not nat["tracking"]:
        return "nat: this kernel tracks no connections"
    lost = ", ".join(f"{count} {what}" for what, count in nat["lost"].items() if count) or "nothing"
    where = f" in {nat['namespaces']} namespaces" if nat["namespaces"] else ""
    refused = f", {nat['refused']} cannot be asked" if nat["refused"] else ""
    why = f" (no programs in the tracker: {nat['why']})" if nat["why"] else ""
    return textwrap.fill(f"nat: {nat['connections']} connections translated, to {nat['destinations']} destinations; "
                         f"from {nat['how']}{where}{refused}{why}; lost: {lost}", _WIDTH, subsequent_indent="     ")


def _nat_rows(nat: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    return [{"dataset": "nat", "hooks": nat["hooks"]}] if nat and nat["hooks"] else []


def hooks_table(datasets: list[Mapping[str, Any]]) -> str:
    """A row for each program and hook; a dataset that does not run has one of its own."""
    def draw(console: Console) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for heading in ("dataset", "program", "hook", "state"):
            table.add_column(heading, no_wrap=heading != "hook", overflow="fold")
        for one in datasets:
            rows = one["hooks"] or [{"program": "", "hook": "", "state": one["state"]}]
            for row in rows:
                table.add_row(*cells(one["dataset"], row["program"], row["hook"],
                                     Text(row["state"], _STYLES.get(row["state"], ""))))
        console.print(table)

    return drawn(draw)


def _age(seconds: float) -> str:
    """`42 s`, `3 min`, `5 h`, `2 d`."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
