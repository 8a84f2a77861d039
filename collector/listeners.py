"""Ports somebody listens on, from /proc: what tells the direction of connections older than the collector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

_LISTEN = "0A"


def listening(proc: Path = Path("/proc")) -> set[tuple[int, int]]:
    """(network namespace number, TCP port) of every listener in every namespace that a process is in.

    On a kernel without namespaces, where even our own process has none, the number is 0, as the programs say too.
    """
    found = set()
    processes: dict[int, int | str] = {**one_process_each(proc)} or {0: "self"}
    for netns, pid in processes.items():
        for table in ("tcp", "tcp6"):
            try:
                text = (proc / str(pid) / "net" / table).read_text()
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


def one_process_each(proc: Path = Path("/proc")) -> dict[int, int]:
    """Network namespace number to the pid of some process in it."""
    found: dict[int, int] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                found.setdefault((entry / "ns" / "net").stat().st_ino, int(entry.name))
            except OSError:
                continue
    return found
