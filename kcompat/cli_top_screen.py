"""The live view of `kcompat top`: the only module that imports textual."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.widgets import DataTable, Footer, Input, Static

from collector.top_rows import SORTS, VIEWS, Row, arranged, rows, summary
from kcompat.cli_top import Interval
from kcompat.cli_top_columns import Column, columns

_GLANCE_S = 0.2
_MOST_ROWS = 500
# Every cell has a space on each side, the table two columns for its scroll bar.
_PADDING, _BAR = 2, 2
_LEAST = 10


class Screen(App[int]):
    """Shows what `take` gives, which is asked often and answers None while there is nothing new."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 2; padding: 0 1; background: $panel; }
    #filter { display: none; height: 1; border: none; padding: 0 1; }
    #filter.open { display: block; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "leave", "quit"),
        ("ctrl+c", "leave", "quit"),
        ("v", "view", "view"),
        ("s", "sort", "sort"),
        ("r", "reverse", "reverse"),
        ("slash", "filter", "filter"),
        ("space", "pause", "pause"),
        ("escape", "clear", "all rows"),
    ]

    def __init__(self, take: Callable[[], Interval | None], interval_s: float, *, view: str = "flow",
                 sort: str = "total", having: str = "") -> None:
        super().__init__()
        self._take, self._interval_s = take, interval_s
        self.view, self.sort, self.having = view, sort, having
        self.is_reversed = self.is_paused = False
        self._last: Interval | None = None
        self._shown: tuple[Column, ...] = ()
        self._error: BaseException | None = None
        self._said = _LastWords()

    def live(self) -> int:
        """Until the user has enough. Whatever ends it, the terminal is as it was before anything is raised."""
        root = logging.getLogger()
        before, root.handlers = root.handlers, [self._said]
        try:
            code = self.run()
        finally:
            root.handlers = before
        if self._error:
            raise self._error
        return code or 0

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        yield Input(value=self.having, placeholder="process, address, name or pod", id="filter")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        # textual leaves these to their default, which ends the process and leaves the terminal as it is.
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self.exit, 0)
        self.query_one(DataTable).focus()
        self.set_interval(_GLANCE_S, self._glance)
        self._draw()

    def on_resize(self) -> None:
        self._shown = ()
        self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.having = event.value
        self._draw()

    def on_input_submitted(self) -> None:
        self._close_filter()

    def action_leave(self) -> None:
        self.exit(0)

    def action_view(self) -> None:
        self.view = VIEWS[(VIEWS.index(self.view) + 1) % len(VIEWS)]
        self._draw()

    def action_sort(self) -> None:
        names = list(SORTS)
        self.sort = names[(names.index(self.sort) + 1) % len(names)]
        self._draw()

    def action_reverse(self) -> None:
        self.is_reversed = not self.is_reversed
        self._draw()

    def action_filter(self) -> None:
        field = self.query_one(Input)
        field.add_class("open")
        field.focus()

    def action_clear(self) -> None:
        self.query_one(Input).value = self.having = ""
        self._close_filter()
        self._draw()

    def action_pause(self) -> None:
        self.is_paused = not self.is_paused
        self._draw()

    def _close_filter(self) -> None:
        self.query_one(Input).remove_class("open")
        self.query_one(DataTable).focus()

    def _glance(self) -> None:
        """What is counted during a pause is not shown after it: each view is of one interval."""
        try:
            counted = self._take()
        except BaseException as error:
            self._error = error
            self.exit(1)
            return
        if counted and not self.is_paused:
            self._last = counted
            self._draw()

    def _draw(self) -> None:
        counted = self._last
        found = rows(counted.records, self.view, counted.elapsed_s) if counted else []
        kept = arranged(found, self.sort, reverse=self.is_reversed, having=self.having)
        self.query_one("#head", Static).update(self._head(kept, counted))
        table = self.query_one(DataTable)
        made = columns(self.view)
        if made is not self._shown:
            table.clear(columns=True)
            fixed = sum((column.width or 0) + _PADDING for column in made) + _BAR
            for column in made:
                title = Text(column.title, justify="right" if column.is_number else "left")
                table.add_column(title, width=column.width or max(_LEAST, self.size.width - fixed))
            self._shown = made
        row, top = table.cursor_row, table.scroll_y
        table.clear()
        for one in kept[:_MOST_ROWS]:
            table.add_row(*(_cell(column, one) for column in made))
        if kept:
            table.move_cursor(row=min(row, len(kept) - 1), scroll=False)
            table.scroll_to(y=top, animate=False)

    def _head(self, kept: list[Row], counted: Interval | None) -> Text:
        state = "paused" if self.is_paused else f"every {self._interval_s:g} s"
        order = f"{self.sort}{', least first' if self.is_reversed else ''}"
        first = f"kcompat top by {self.view}, sorted by {order}, {state}"
        if self.having:
            first += f", with {self.having!r}"
        lost = f"; lost: {counted.lost}" if counted and counted.lost else ""
        second = self._said.words or (summary(kept) + lost if counted else "counting")
        return Text(f"{first}\n{second}", no_wrap=True, overflow="ellipsis")


class _LastWords(logging.Handler):
    """Warnings go to the head of the screen: standard error is under the picture."""

    words = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.words = " ".join(self.format(record).split())


def _cell(column: Column, row: Row) -> Text:
    return Text(column.show(row), justify="right" if column.is_number else "left", no_wrap=True, overflow="ellipsis",
                style="bold red" if column.title == "retr" and row.retransmits else "")
