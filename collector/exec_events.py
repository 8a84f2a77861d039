"""Processes that have just begun to run another program, told by the kernel's process connector."""

from __future__ import annotations

import os
import socket
import struct

from collector.packet_ring import attach

# <linux/netlink.h>, <linux/connector.h>, <linux/cn_proc.h>
_CONNECTOR = 11
_PROCESSES = 1
_LISTEN = 1
_ACKNOWLEDGED, _EXEC = 0, 2
_PATIENCE_S = 1.0
_DONE = 3
# struct nlmsghdr and struct cn_msg come before the event: what it is, the processor, the time, thread and process.
_EVENT_AT = 16 + 20
_EVENT = struct.Struct("=IIQII")


class ExecEvents:
    """A socket that is readable when there is something to tell. Raises OSError where the kernel or a container
    does not let us: CONFIG_PROC_EVENTS, CAP_NET_ADMIN and the first namespaces are needed.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _CONNECTOR)
        try:
            # Forks and ends of processes, which are most events, do not wake us.
            attach(self._socket, _only(_EXEC, _ACKNOWLEDGED))
            self._socket.bind((0, _PROCESSES))
            body = struct.pack("=IIIIHHI", _PROCESSES, _PROCESSES, 0, 0, 4, 0, _LISTEN)
            self._socket.send(struct.pack("=IHHII", 16 + len(body), _DONE, 0, 0, os.getpid()) + body)
            # A kernel with connectors but without this one says nothing at all.
            self._socket.settimeout(_PATIENCE_S)
            self._socket.recv(4096)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def pids(self) -> list[int]:
        """Those told of since it was asked last. Some may be missing: a full socket drops them."""
        found: list[int] = []
        while True:
            try:
                message = self._socket.recv(4096)
            except BlockingIOError:
                return found
            except OSError:
                continue  # ENOBUFS, told once
            if len(message) >= _EVENT_AT + _EVENT.size:
                what, _, _, _, process = _EVENT.unpack_from(message, _EVENT_AT)
                if what == _EXEC:
                    found.append(process)

    def close(self) -> None:
        self._socket.close()


def _only(one: int, other: int) -> bytes:
    """Classic BPF, which reads in network order what the kernel wrote in its own: load the word, compare, return."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in (
        (0x20, 0, 0, _EVENT_AT), (0x15, 1, 0, socket.htonl(one)), (0x15, 0, 1, socket.htonl(other)),
        (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)))
