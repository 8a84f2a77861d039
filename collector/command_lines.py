"""Parts of memory made into command lines, and those into records of the bash dataset."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

from collector.record import Record
from collector.redaction import Redactions

MEASUREMENT = "bash"
LONGEST = 4096
# Two programs on one function, as on a file that two containers have in a layer they share, see it return at once.
_ECHO_NS = 100_000

# struct part_key and struct part of bash.bpf.c.
_KEY = struct.Struct("<QII")
_PART = struct.Struct("<IIII16s256s")


class Typed(NamedTuple):
    """One line as it came from readline(); `time_ns` of CLOCK_MONOTONIC, `is_cut` when it was longer than LONGEST."""

    time_ns: int
    thread: int
    pid: int
    uid: int
    comm: str
    text: bytes
    is_cut: bool


def assemble(parts: Iterable[tuple[bytes, bytes]]) -> list[Typed]:
    """The lines of all these parts (key and value as in the map), oldest first; parts in any order, none left over.

    A line whose later parts found no room is what was there before them.
    """
    read = sorted((_KEY.unpack(key), _PART.unpack(value)) for key, value in parts)
    lines = []
    for (time_ns, thread), group in groupby(read, key=lambda part: part[0][:2]):
        pieces = [part for _, part in group]
        pid, uid, lead, _, comm, _ = pieces[0]
        memory = b"".join(text[:size] for _, _, _, size, _, text in pieces)
        text, end, _ = memory[lead:].partition(b"\0")
        lines.append(Typed(time_ns, thread, pid, uid, comm.partition(b"\0")[0].decode(errors="replace"),
                           text[:LONGEST], len(text) > LONGEST or not end))
    return _once(lines)


def _once(lines: list[Typed]) -> list[Typed]:
    kept: list[Typed] = []
    last: dict[int, Typed] = {}
    for line in lines:
        before = last.get(line.thread)
        if before is None or line.text != before.text or line.time_ns - before.time_ns > _ECHO_NS:
            kept.append(line)
        last[line.thread] = line
    return kept


def record(line: Typed, user: str, host: str, time_ns: int, redact: Redactions) -> Record | None:
    """The record of a line typed at `time_ns` since the epoch; None for a blank one."""
    command = redact.command(line.text.decode(errors="backslashreplace"))
    if not command.strip():
        return None
    when = datetime.fromtimestamp(time_ns / 1e9).astimezone().isoformat(timespec="seconds").replace("+00:00", "Z")
    return Record(MEASUREMENT, {"host": host, "source": MEASUREMENT}, {
        "cmd": command, "pid": str(line.pid), "user": user,
        "message": f"{when} pid:`{line.pid}` user:`{user}` cmd:`{command}`"}, time_ns)
