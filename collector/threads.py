"""What programs keep by thread for the length of a call, of threads that ended in it or whose end was missed."""

from __future__ import annotations

from pathlib import Path

from collector.proc_files import PROC, exists
from kcompat.maps import Map

# What programs put into the highest bits of a key is no part of a process's number, which has 22 at most.
_PIDS = 0x7FFF_FFFF


def forget_ended(table: Map, proc: Path = PROC, *, when_over: int | None = None) -> None:
    """Deletes what nobody else would; keys are what bpf_get_current_pid_tgid() gives.

    Without `when_over` nothing before the map is half full, for it takes a look at every thread in it. A thread that
    lives writes over what it left with its next call.
    """
    found = table.items()
    if len(found) <= (table.spec.max_entries // 2 if when_over is None else when_over):
        return
    for key, _ in found:
        thread, process = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:8], "little") & _PIDS
        if not exists(process, f"task/{thread}", proc):
            table.delete(key)
