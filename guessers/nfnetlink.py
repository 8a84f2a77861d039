"""The few words of nfnetlink a guess speaks: a tracked connection with every field chosen, and a rule that needs them.

pyroute2 knows many more, and takes three times as long to import as the whole guess does.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

_NETLINK_NETFILTER = 12
_REQUEST, _ACK, _EXCL, _CREATE, _APPEND = 1, 4, 0x200, 0x400, 0x800
_ERROR = 2
_NESTED = 0x8000
_NFPROTO_INET, _NFPROTO_IPV4, _NFPROTO_IPV6 = 1, 2, 10
# Message types: the subsystem in the high byte (uapi/linux/netfilter/nfnetlink.h).
_CT_NEW, _CT_GET = 0x100, 0x101
_TABLE, _CHAIN, _RULE = 0xA00, 0xA03, 0xA06
_BATCH_BEGIN, _BATCH_END, _NFTABLES = 16, 17, 10
_CTA_ORIGINAL, _CTA_REPLY, _CTA_STATUS, _CTA_TIMEOUT, _CTA_MARK = 1, 2, 3, 7, 8
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a tracked connection; the addresses are packed. Ports are 0 for protocols without any."""

    family: int
    protocol: int
    source: bytes
    destination: bytes
    source_port: int = 0
    destination_port: int = 0


class Netfilter:
    """A conversation with the network namespace this thread is in now. Raises OSError where the kernel refuses."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.settimeout(_PATIENCE_S)
        self._number = 0

    def track(self) -> None:
        """Makes the namespace track its connections: since 4.10 only one with a rule that asks for it does.

        The rule is in a chain nothing leads to: it needs to exist, not to be reached. A kernel without IPv6, or one
        that was told so, has no table for both families.
        """
        try:
            self._require(_NFPROTO_INET)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise
        self._require(_NFPROTO_IPV4)
        with suppress(OSError):
            self._require(_NFPROTO_IPV6)

    def _require(self, family: int) -> None:
        names = (b"kcompat\0", b"needs\0")
        state = _nested(4, _nested(1, _attribute(1, b"ct\0") + _nested(2, _number(1, 8) + _number(2, 0))))
        self._ask(
            message(_BATCH_BEGIN, _REQUEST, 0, b"", _NFTABLES),
            message(_TABLE, _REQUEST | _CREATE, family, _attribute(1, names[0])),
            message(_CHAIN, _REQUEST | _CREATE, family, _attribute(1, names[0]) + _attribute(3, names[1])),
            message(_RULE, _REQUEST | _CREATE | _APPEND | _ACK, family,
                     _attribute(1, names[0]) + _attribute(2, names[1]) + state),
            message(_BATCH_END, _REQUEST, 0, b"", _NFTABLES))

    def insert(self, original: Tuple, reply: Tuple, *, mark: int, status: int, timeout_s: int) -> None:
        """Makes an entry of the connection tracker."""
        self._ask(message(_CT_NEW, _REQUEST | _CREATE | _EXCL | _ACK, original.family,
                           _tuple(_CTA_ORIGINAL, original) + _tuple(_CTA_REPLY, reply) + _number(_CTA_STATUS, status)
                           + _number(_CTA_TIMEOUT, timeout_s) + _number(_CTA_MARK, mark)))

    def status_and_mark(self, original: Tuple) -> tuple[int, int | None]:
        """What the tracker says of an entry; no mark from a kernel that keeps none."""
        answer = self._ask(message(_CT_GET, _REQUEST | _ACK, original.family, _tuple(_CTA_ORIGINAL, original)))
        told = attributes(answer[20:])
        if _CTA_STATUS not in told:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        mark = told.get(_CTA_MARK)
        return int.from_bytes(told[_CTA_STATUS], "big"), None if mark is None else int.from_bytes(mark, "big")

    def _ask(self, *messages: bytes) -> bytes:
        """The answer that came before the acknowledgement of these messages.

        Of a batch that is refused several may be answered: what belongs to an earlier question is passed over.
        """
        self._number += 1
        self._socket.send(b"".join(numbered(message, self._number) for message in messages))
        answer = b""
        while True:
            data = self._socket.recv(65536)
            while len(data) >= 16:
                size, kind, _, number = struct.unpack_from("<IHHI", data)
                if number == self._number:
                    if kind == _ERROR:
                        if code := -struct.unpack_from("<i", data, 16)[0]:
                            raise OSError(code, os.strerror(code))
                        return answer
                    answer = data[:size]
                data = data[(max(size, 16) + 3) & ~3:]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netfilter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def unavailable(error: OSError) -> str:
    """Why the kernel tracks nothing for us, in words."""
    if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT, errno.ENOSYS):
        return f"this kernel has no connection tracking, or not the modules to ask for it: {error.strerror}"
    return f"connection tracking refuses us: {error.strerror or error}"


def message(kind: int, flags: int, family: int, attributes: bytes, resource: int = 0) -> bytes:
    """struct nlmsghdr and struct nfgenmsg, whose version is 0 and whose resource is in network byte order."""
    return struct.pack("<IHHII", 20 + len(attributes), kind, flags, 0, 0) + struct.pack(
        ">BBH", family, 0, resource) + attributes


def numbered(message: bytes, number: int) -> bytes:
    """The message with that nlmsg_seq, which its answers have too."""
    return message[:8] + struct.pack("<I", number) + message[12:]


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("<HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, inner: bytes) -> bytes:
    return _attribute(kind | _NESTED, inner)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, value.to_bytes(4, "big"))


def _tuple(kind: int, one: Tuple) -> bytes:
    first = 1 if one.family == socket.AF_INET else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
    addresses = _attribute(first, one.source) + _attribute(first + 1, one.destination)
    protocol = _attribute(1, bytes([one.protocol]))
    if one.source_port or one.destination_port:
        protocol += _attribute(2, one.source_port.to_bytes(2, "big"))
        protocol += _attribute(3, one.destination_port.to_bytes(2, "big"))
    return _nested(kind, _nested(1, addresses) + _nested(2, protocol))


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("<HH", data)
        found[kind & 0x3FFF] = data[4:size]
        data = data[(max(size, 4) + 3) & ~3:]
    return found
