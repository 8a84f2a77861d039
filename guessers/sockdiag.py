"""What sock_diag tells of a TCP socket of ours that getsockopt does not: its cookie, on kernels before 4.12."""

from __future__ import annotations

import errno
import os
import socket
import struct
from functools import cache

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _REQUEST, _ERROR = 4, 20, 1, 2
_ANY_STATE = 0xFFFF_FFFF
_NO_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE
_PATIENCE_S = 5.0
# struct inet_diag_msg (uapi/linux/inet_diag.h): family, state and timers, then the struct inet_diag_sockid.
_HEADER, _BEFORE_ID, _ENDS, _COOKIE, _INTERFACE = 16, 4, 36, 8, 4


def cookie(sock: socket.socket, *, bound_dev_if: int) -> bytes:
    """The 64 bits that are the socket's own since 4.1 (kernel commit 33cf7c90fe2f), made when first asked for.

    Raises OSError where nobody answers, or not about this socket.
    """
    ends = _ends(sock)
    asked = struct.pack("<BBxxI", sock.family, socket.IPPROTO_TCP, _ANY_STATE) + ends
    asked += struct.pack("<I", bound_dev_if) + _NO_COOKIE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_PATIENCE_S)
        netlink.send(struct.pack("<IHHII", _HEADER + len(asked), _SOCK_DIAG_BY_FAMILY, _REQUEST, 0, 0) + asked)
        return read_cookie(netlink.recv(65536), ends)


def read_cookie(answer: bytes, ends: bytes) -> bytes:
    """The cookie in an answer about the socket with these ports and addresses. Raises OSError for any other answer."""
    kind = int.from_bytes(answer[4:6], "little")
    told = answer[_HEADER + _BEFORE_ID:]
    found = told[_ENDS + _INTERFACE:][:_COOKIE]
    if kind != _SOCK_DIAG_BY_FAMILY or told[:_ENDS] != ends or len(found) != _COOKIE:
        code = -int.from_bytes(answer[_HEADER:_HEADER + 4], "little", signed=True)
        code = code if kind == _ERROR and code else errno.ENOENT
        raise OSError(code, os.strerror(code))
    return found


@cache
def answers() -> bool:
    """Whether the kernel tells cookies this way at all: where it does not, each question would look for a module."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen(1)
            cookie(sock, bound_dev_if=0)
    except OSError:
        return False
    return True


def _ends(sock: socket.socket) -> bytes:
    """Ports and addresses of both ends as a struct inet_diag_sockid begins with them: what there is not is 0."""
    local = sock.getsockname()
    try:
        peer = sock.getpeername()
    except OSError:
        peer = ("0.0.0.0" if sock.family == socket.AF_INET else "::", 0)
    addresses = b"".join(socket.inet_pton(sock.family, end[0]).ljust(16, b"\0") for end in (local, peer))
    return struct.pack(">HH", local[1], peer[1]) + addresses
