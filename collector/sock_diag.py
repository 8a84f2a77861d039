"""The sockets of a network namespace as sock_diag(7) lists them.

pyroute2 lists them too, each a tree of objects, of which a machine with 100,000 connections would make as many before
its collector begins. What is wanted is one fixed struct.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from collector.addresses import V4_MAPPED

_SOCK_DIAG, _BY_FAMILY = 4, 20
_REQUEST_DUMP, _DONE, _ERROR = 0x301, 3, 2
# struct inet_diag_msg: family, state, (timer, retrans,) ports, addresses, (interface, cookie, ..., uid,) inode.
_MESSAGE = struct.Struct(">BB2xHH16s16s28x4s")
_PATIENCE_S = 5.0
ESTABLISHED, SYN_SENT, SYN_RECV, TIME_WAIT, CLOSE, LISTEN = 1, 2, 3, 6, 7, 10


class Sock(NamedTuple):
    """One socket; addresses are 16 bytes, v4-mapped for IPv4. `inode` is 0 where no process holds it any more."""

    state: int
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    inode: int


def sockets(protocol: int, states: int = 0xFFF) -> Iterator[Sock]:
    """Those of the namespace this thread is in, of both families; `states` has a bit for each. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as asked:
        asked.settimeout(_PATIENCE_S)
        for family in (socket.AF_INET, socket.AF_INET6):
            body = struct.pack("=BBBxI48x", family, protocol, 0, states)
            asked.send(struct.pack("=IHHII", 16 + len(body), _BY_FAMILY, _REQUEST_DUMP, family, 0) + body)
            yield from _answers(asked)


def _answers(asked: socket.socket) -> Iterator[Sock]:
    while True:
        data = memoryview(asked.recv(1 << 18))
        while len(data) >= 16:
            size, kind = struct.unpack_from("=IH", data)
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", data, 16)[0]
                raise OSError(code, os.strerror(code))
            yield parsed(data[16:size])
            data = data[(max(size, 16) + 3) & ~3:]


def parsed(message: bytes | memoryview) -> Sock:
    """A ``struct inet_diag_msg``; in network order but for the numbers at its end."""
    family, state, local_port, remote_port, local, remote, inode = _MESSAGE.unpack_from(message)
    if family == socket.AF_INET:
        local, remote = V4_MAPPED + local[:4], V4_MAPPED + remote[:4]
    return Sock(state, local, local_port, remote, remote_port, int.from_bytes(inode, sys.byteorder))
