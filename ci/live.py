"""What a terminal shows while kernels run: a table that moves; plain lines where there is no terminal."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ci.results import KernelResult
from ci.verdict import Outcome, printable

STYLES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.UNKNOWN: "yellow"}
# Kernels that wait are a number below the table, not lines of it.
_PER_SECOND = 2


@dataclass
class _Row:
    begun: float
    worker: str
    phase: str
    line: str


class Progress:
    """Shows which kernels run, in which phase and since when, and those that have ended. Told from any thread."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._running: dict[str, _Row] = {}
        self._ended: list[KernelResult] = []
        self._lock = threading.Lock()
        live = Live(get_renderable=self._render, console=console, refresh_per_second=_PER_SECOND)
        self._live = live if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def told(self, name: str, worker: str, phase: str, line: str) -> None:
        with self._lock:
            row = self._running.setdefault(name, _Row(time.monotonic(), worker, phase, line))
            if row.worker != worker:
                # Its worker died: it begins again elsewhere.
                row.begun, row.worker = time.monotonic(), worker
            row.phase, row.line = phase, line

    def ended(self, result: KernelResult) -> None:
        with self._lock:
            self._running.pop(result.name, None)
            self._ended.append(result)
        if self._live is None:
            self._console.print(_told(result), soft_wrap=True)

    def _render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        table.add_column("kernel", no_wrap=True)
        table.add_column("phase", no_wrap=True)
        table.add_column("s", justify="right", no_wrap=True)
        table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
        with self._lock:
            for result in self._ended:
                seconds = "" if result.total_s is None else f"{result.total_s:.0f}"
                outcome = Text(result.outcome.value, STYLES[result.outcome])
                table.add_row(result.name, outcome, seconds, printable(result.reason))
            for name, row in self._running.items():
                table.add_row(name, row.phase, f"{time.monotonic() - row.begun:.0f}", Text(printable(row.line), "dim"))
            waiting = self._total - len(self._ended) - len(self._running)
        return Group(table, Text(f"{waiting} waiting", "dim")) if waiting > 0 else table


def _told(result: KernelResult) -> Text:
    """One line: ``5.10 5.10.0-46-amd64: pass (101.7 s, boot 8.1 s)``."""
    name = f"{result.name} {result.release}" if result.release else result.name
    boot = "" if result.boot_s is None else f", boot {result.boot_s:.1f} s"
    total = "" if result.total_s is None else f" ({result.total_s:.1f} s{boot})"
    why = f": {printable(result.reason)}" if result.reason else ""
    return Text.assemble(f"{name}: ", (result.outcome.value, STYLES[result.outcome]), why, total)
