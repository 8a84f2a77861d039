"""Ports somebody listens on, from /proc: what tells the direction of connections older than the collector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from collector.proc_files import PROC, inode, pids, read

_LISTEN = "0A"


def listening(proc: Path = PROC) -> set[tuple[int, int]]:
    """(network namespace number, TCP port) of every listener in every namespace that a process is in.

    On a kernel without namespaces, where even our own process has none, the number is 0, as the programs say too.
    """
    found = set()
    processes: dict[int, int | str] = {**one_process_each(proc)} or {0: "self"}
    for netns, pid in processes.items():
        for table in ("tcp", "tcp6"):
            try:
                text = read(pid, f"net/{table}", proc).decode()
            except OSError:
                continue  # the process is gone, or the kernel has no IPv6
            found |= {(netns, port) for port in listening_ports(text.splitlines()[1:])}
    return found


def listening_ports(lines: Iterable[str]) -> Iterator[int]:
    """The local ports in state LISTEN of the lines of /proc/net/tcp or tcp6 (proc(5))."""
    for line in lines:
        columns = line.split()
        if len(columns) > 3 and columns[3] == _LISTEN:
            yield int(columns[1].rpartition(":")[2], 16)


def one_process_each(proc: Path = PROC) -> dict[int, int]:
    """Network namespace number to the pid of some process in it."""
    found: dict[int, int] = {}
    for pid in pids(proc):
        with suppress(OSError):
            found.setdefault(inode(pid, "ns/net", proc), pid)
    return found
