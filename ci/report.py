"""What people and machines read of a run: JUnit XML, one HTML file, Markdown for the docs, and a terminal."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ci.report_facts import asked, check_names, count, why
from ci.report_html import html
from ci.report_junit import junit
from ci.report_markdown import markdown
from ci.results import KernelResult, MatrixResult
from ci.verdict import Outcome, printable

MARKS = {Outcome.PASS: ("✓", "green"), Outcome.FAIL: ("✗", "bold red"), Outcome.UNKNOWN: ("?", "yellow")}


def write_junit(result: MatrixResult, path: Path) -> None:
    _write(path, junit(result))


def write_html(result: MatrixResult, path: Path) -> None:
    _write(path, html(result))


def write_markdown(result: MatrixResult, path: Path, screenshot: Path | None) -> None:
    """`screenshot` (``write_screenshot``) is named in it as seen from `path`; it is not read."""
    relative = os.path.relpath(screenshot, path.parent) if screenshot else None
    _write(path, markdown(result, relative))


def write_screenshot(result: MatrixResult, path: Path) -> None:
    """The HTML report as PNG, and beside it ``-dark``. Raises BrowserError."""
    # Only this needs a browser.
    from ci.report_screenshot import dark, screenshot

    with tempfile.TemporaryDirectory(prefix="kcompat-report-") as work:
        page = Path(work) / "report.html"
        write_html(result, page)
        screenshot(page, path, "light")
        screenshot(page, dark(path), "dark")


def show(result: MatrixResult, console: Console) -> None:
    """A line per kernel, a mark per check; beneath them why a kernel did not pass."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    checks = check_names(result.kernels)
    table.add_column("kernel")
    table.add_column("release")
    for name in checks:
        table.add_column(printable(name), justify="center")
    table.add_column("fields", justify="right")
    table.add_column("seconds", justify="right")
    for kernel in result.kernels:
        table.add_row(*_cells(kernel, checks))
    console.print(table)
    for kernel in result.kernels:
        if kernel.outcome is not Outcome.PASS:
            mark, style = MARKS[kernel.outcome]
            name, said = printable(kernel.name), printable(why(kernel))
            console.print(Text.assemble((f"{mark} {name}", style), f": {said}"), soft_wrap=True)
    outcomes = [kernel.outcome for kernel in result.kernels]
    console.print(f"{len(outcomes)} kernels in {result.seconds:.0f} s: "
                  + ", ".join(f"{outcomes.count(outcome)} {outcome.value}" for outcome in Outcome))


def _cells(kernel: KernelResult, checks: Iterable[str]) -> list[Text]:
    outcomes = {check.name: check.outcome for check in asked(kernel)}
    marks = [Text(*MARKS[outcomes[name]]) if name in outcomes else Text("") for name in checks]
    fields = f"{count([kernel])['right']}/{len(kernel.fields)}" if kernel.fields else ""
    total = "" if kernel.total_s is None else f"{kernel.total_s:.0f}"
    return [Text(printable(kernel.name)), Text(printable(kernel.release or "")), *marks, Text(fields), Text(total)]


def _write(path: Path, text: str) -> None:
    """All of it, or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.",
                                     delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.flush()
            # mkstemp's files are the owner's alone; a report is for whoever may read what we make.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
