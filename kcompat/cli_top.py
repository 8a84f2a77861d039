"""`kcompat top`: what goes over the network now, by flow, process or peer, live on a terminal or as JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kcompat.cli_output import drawn, emit, is_terminal
from kcompat.cli_sources import SOURCES, Request
from kcompat.errors import KcompatError, Missing

if TYPE_CHECKING:
    from rich.console import Console

    from collector.pipeline import Pipeline
    from collector.record import Record
    from collector.top_rows import Row

# Named here too, because `--help` must not import the collector; a test holds them together.
VIEWS = ("flow", "process", "peer")
SORTS = ("total", "read", "written", "rtt", "retransmits", "flows")
_ROWS = 100
_PATIENCE_S = 300.0
_END_S = 20.0


class Interval(NamedTuple):
    """What was counted between two flushes."""

    records: Sequence[Record]
    elapsed_s: float
    lost: int


class Feed:
    """A collector in a thread of its own, and what it counted last."""

    name = "top"
    written = dropped = 0

    def __init__(self) -> None:
        self._runs: Pipeline | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self._seen = 0
        self._since_s = time.monotonic()
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def write(self, records: Sequence[Record]) -> None:
        with self._lock:
            self._records += records

    def flush(self, deadline_s: float = 0) -> None:
        """Nothing is held up."""

    def close(self, deadline_s: float = _END_S) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(deadline_s)

    def start(self, runs: Pipeline, ready: threading.Event) -> None:
        """Returns once everything is attached. Raises what kept it from that."""
        self._runs = runs
        self._thread = threading.Thread(target=self._run, args=(runs,), name="top", daemon=True)
        self._thread.start()
        until_s = time.monotonic() + _PATIENCE_S
        while not ready.wait(0.05):
            if not self._thread.is_alive():
                raise self.error or KcompatError("the collector ended before it began")
            if time.monotonic() > until_s:
                raise KcompatError(f"the collector did not begin within {_PATIENCE_S:.0f} s")
        self._since_s = time.monotonic()

    def take(self) -> Interval | None:
        """The interval that has ended since the last was taken; None while there is none. Raises what ended it all."""
        if self.error:
            raise self.error
        status = self._runs.status if self._runs else None
        if status is None or status.flushes == self._seen:
            return None
        now_s = time.monotonic()
        with self._lock:
            records, self._records = self._records, []
        made = Interval(records, max(now_s - self._since_s, 0.001),
                        sum(sum(one.lost.values()) for one in status.datasets))
        self._seen, self._since_s = status.flushes, now_s
        return made

    def _run(self, runs: Pipeline) -> None:
        try:
            runs.run(self._stop)
        except BaseException as error:
            self.error = error


@click.command()
@click.option("--by", "view", type=click.Choice(VIEWS), default="flow", show_default=True,
              help="A row for each of these.")
@click.option("--sort", type=click.Choice(SORTS), default="total", show_default=True, help="What comes first.")
@click.option("--filter", "having", default="", metavar="TEXT",
              help="Only rows with this in a process, address, name or pod.")
@click.option("--interval", type=click.FloatRange(1, 1800), default=2.0, show_default=True, metavar="SECONDS",
              help="Time between two views.")
@click.option("--loopback", is_flag=True, help="Show flows of the loopback interface too.")
@click.option("--once", is_flag=True, help="Print one interval as a table and end; a terminal is not needed.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object an interval, a line each; one with --once.")
@click.option("--source", type=click.Choice(SOURCES), default="auto", show_default=True,
              help="Where offsets come from.")
@click.pass_obj
def top(db: Path | None, view: str, sort: str, having: str, interval: float, loopback: bool, once: bool, as_json: bool,
        source: str) -> None:
    """Show what goes over the network now, by flow, process or peer. Needs root.

    Counts as `collect` does, with programs of its own, also beside a collector that runs. On a terminal it is live:
    v changes the view, s the order and r turns it round, / filters, space pauses, q ends.

    \b
    Examples:
      sudo kcompat top
      sudo kcompat top --by process --sort rtt
      sudo kcompat top --once --filter nginx
      sudo kcompat top --json --interval 10
    """
    from collector.top_rows import arranged, rows

    live = not (once or as_json)
    if live:
        if not (sys.stdin and sys.stdin.isatty() and is_terminal()):
            raise click.UsageError("top needs a terminal: give --once or --json where there is none")
        try:
            from kcompat.cli_top_screen import Screen
        except ImportError as error:
            raise Missing(f"the live view is not installed ({error.name}): pip install 'kcompat[top]', or use --once"
                          ) from error
    with _feeding(Request(source, None, db, running_only=True), interval, loopback) as feed:
        if live:
            sys.exit(Screen(feed.take, interval, view=view, sort=sort, having=having).live())
        while True:
            counted = feed.take()
            if counted is None:
                time.sleep(0.05)
                continue
            shown = arranged(rows(counted.records, view, counted.elapsed_s), sort, having=having)
            emit(_json(shown, view, counted) if as_json else _table(shown, view))
            if once:
                return


@contextmanager
def _feeding(request: Request, interval_s: float, loopback: bool) -> Iterator[Feed]:
    """Collects meanwhile. What the collector has to say is said before and after, never over the picture."""
    from collector.config import Options
    from collector.pipeline import Pipeline
    from kcompat.cli_collect import offsets_of
    from kcompat.open_files import allow_many
    from kcompat.probe import require_bpf

    require_bpf()
    allow_many()
    options = Options(datasets=("netflow",), interval_s=interval_s, loopback=loopback)
    _, offsets = offsets_of(request, options.datasets)
    ready = threading.Event()
    feed = Feed()
    runs = Pipeline(options, offsets, feed, ready=ready)
    try:
        feed.start(runs, ready)
        yield feed
    finally:
        feed.close()


def _json(shown: Sequence[Row], view: str, counted: Interval) -> str:
    told: dict[str, Any] = {"by": view, "elapsed_s": round(counted.elapsed_s, 3), "lost": counted.lost,
                            "rows": [row.as_json() for row in shown]}
    return json.dumps(told) + "\n"


def _table(shown: Sequence[Row], view: str) -> str:
    from collector.top_rows import summary
    from kcompat.cli_top_columns import columns

    def draw(console: Console) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        made = columns(view)
        for column in made:
            # Who reads a pipe wants whole names; on a terminal a row is a line.
            cut = column.is_number or is_terminal()
            table.add_column(column.title, justify="right" if column.is_number else "left",
                             overflow="ellipsis" if cut else "fold", no_wrap=cut)
        for row in shown[:_ROWS]:
            table.add_row(*(Text(column.show(row)) for column in made))
        console.print(table)

    more = f"; {len(shown) - _ROWS} rows not shown" if len(shown) > _ROWS else ""
    return drawn(draw) + f"{summary(shown)}{more}\n"
