"""What there was before the collector: who listened, and of each old connection who opened it and whose it is."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from collector import listeners, sock_diag
from collector.namespaces import doors, visit
from collector.proc_files import PROC, link, names, pids

log = logging.getLogger(__name__)

_BOUND = 1 << 18
# Of these nothing more is counted: of one that waits for its time to pass nobody even says when it has.
_NOT_OLD = frozenset((sock_diag.SYN_SENT, sock_diag.SYN_RECV, sock_diag.TIME_WAIT, sock_diag.CLOSE))
# Whose sockets they are is found in the descriptors of every process; where there are too many, some stay unknown.
_OWNERS_S = 2.0
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")

# netns, local address and port, remote address and port.
Ends = tuple[int, bytes, int, bytes, int]


class Old(NamedTuple):
    """A connection older than the collector; `pid` 0 when nobody's, or not known."""

    direction: str
    pid: int


@dataclass(slots=True)
class Seeds:
    """`listeners` and `bound` are (netns, port): of TCP, and of datagram sockets that serve whoever comes."""

    listeners: set[tuple[int, int]] = field(default_factory=set)
    bound: set[tuple[int, int]] = field(default_factory=set)
    old: dict[Ends, Old] = field(default_factory=dict)


def seeds() -> Seeds:
    """Of every network namespace; of one that sock_diag says nothing about, the listeners of /proc."""
    found = Seeds()
    inodes: dict[Ends, int] = {}
    silent = set()
    for netns, door in doors().items():
        try:
            tcp, udp = visit(door, lambda: (list(sock_diag.sockets(socket.IPPROTO_TCP)),
                                            list(sock_diag.sockets(socket.IPPROTO_UDP))))
        except FileNotFoundError:
            continue  # its last process has ended
        except OSError as error:
            log.info("sock_diag of network namespace %d: %s; /proc is asked instead", netns, error.strerror)
            silent.add(netns)
            continue
        _add(found, inodes, netns, tcp, udp)
    if silent:
        found.listeners |= {(netns, port) for netns, port in listeners.listening() if netns in silent}
    owners = pids_of({inode for inode in inodes.values() if inode})
    for ends, inode in inodes.items():
        direction = "incoming" if (ends[0], ends[2]) in found.listeners else "outgoing"
        found.old[ends] = Old(direction, owners.get(inode, 0))
    return found


def _add(found: Seeds, inodes: dict[Ends, int], netns: int, tcp: list[sock_diag.Sock],
         udp: list[sock_diag.Sock]) -> None:
    for one in tcp:
        if one.state == sock_diag.LISTEN:
            found.listeners.add((netns, one.local_port))
        elif one.state not in _NOT_OLD and len(inodes) < _BOUND:
            inodes[netns, one.local, one.local_port, one.remote, one.remote_port] = one.inode
    first_ephemeral = ephemeral()
    # A client that is bound to nothing gets a port of this range; a server's has a number it is known by.
    found.bound |= {(netns, one.local_port) for one in udp
                    if not one.remote_port and 0 < one.local_port < first_ephemeral}


def ephemeral() -> int:
    """The first of the ports that the kernel gives away."""
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32768


def pids_of(inodes: set[int], proc: Path = PROC) -> Mapping[int, int]:
    """Socket inode to the lowest pid that holds it; what takes too long to find is left out."""
    found: dict[int, int] = {}
    deadline_s = time.monotonic() + _OWNERS_S
    for pid in sorted(pids(proc)) if inodes else ():
        with suppress(OSError):
            for fd in names(pid, "fd", proc):
                if time.monotonic() > deadline_s:
                    log.info("whose the old connections are is known of %d of %d", len(found), len(inodes))
                    return found
                with suppress(OSError):
                    target = link(pid, f"fd/{fd}", proc)
                    if target.startswith("socket:[") and (inode := int(target[8:-1])) in inodes:
                        found.setdefault(inode, pid)
    return found
