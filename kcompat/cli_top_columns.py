"""The columns of `kcompat top`, for each view: live and printed ones are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from collector.top_rows import Row, duration, scaled


class Column(NamedTuple):
    """`width` is what it takes of 80 columns; 0: it takes what is left."""

    title: str
    width: int
    show: Callable[[Row], str]
    is_number: bool = False


_PROCESS = Column("process", 13, lambda row: row.process)
_FLOWS = Column("flows", 5, lambda row: str(row.flows), True)
_NUMBERS = (
    Column("read/s", 6, lambda row: scaled(row.read_rate), True),
    Column("writ/s", 6, lambda row: scaled(row.write_rate), True),
    Column("rtt", 6, lambda row: duration(row.rtt_us), True),
    Column("retr", 4, lambda row: str(row.retransmits or ""), True),
)
_COLUMNS = {
    "flow": (_PROCESS, Column("", 2, lambda row: row.direction), Column("peer", 0, lambda row: row.peer),
             Column("", 3, lambda row: row.transport), *_NUMBERS),
    "process": (Column("process", 0, lambda row: row.process), Column("pid", 7, lambda row: row.pid, True), _FLOWS,
                *_NUMBERS),
    "peer": (Column("peer", 0, lambda row: row.peer), _FLOWS, *_NUMBERS),
}


def columns(view: str) -> tuple[Column, ...]:
    return _COLUMNS[view]
