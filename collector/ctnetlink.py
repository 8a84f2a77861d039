"""The translated destinations of one namespace's connection tracker: all there are, then each that comes and goes.

nfnetlink tells them. A classic BPF of nine instructions passes those events alone that speak of a translated
destination, so that a machine that tracks every connection and translates none has nothing to read.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from collector.translation import Translation, address, translated
from guessers.nfnetlink import attributes, message, numbered

_NETLINK_NETFILTER = 12
_REQUEST_DUMP, _DONE, _ERROR = 0x301, 3, 2
_NEW, _GET, _DELETE = 0x100, 0x101, 0x102
_GROUP_NEW, _GROUP_DESTROY = 1 << 0, 1 << 2
_ORIGINAL, _REPLY, _STATUS, _STATUS_MASK = 1, 2, 3, 26
_DST_NAT = 1 << 5
_BODY = 20  # struct nlmsghdr and struct nfgenmsg
_BUFFER = 8 << 20
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_PATIENCE_S = 5.0
_LOADED = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_MODULE = Path("/sys/module/nf_conntrack")
_EVENTS = Path("/proc/sys/net/netfilter/nf_conntrack_events")
# A = the attribute CTA_STATUS, looked for by SKF_AD_NLATTR from A on; what has none, or no such bit, goes no further.
_FILTER = ((0x00, 0, 0, _BODY), (0x01, 0, 0, _STATUS), (0x20, 0, 0, 0xFFFF_F000 + 12), (0x15, 4, 0, 0),
           (0x07, 0, 0, 0), (0x40, 0, 0, 4), (0x45, 0, 1, _DST_NAT), (0x06, 0, 0, 0xFFFF_FFFF), (0x06, 0, 0, 0))


def is_loaded() -> bool:
    """Whether this kernel has a connection tracker. To ask one that it has not would load the module, and track."""
    return _LOADED.exists()


def loaded_as() -> int | None:
    """A number that another load of the module will not have; None as long as there is no tracker."""
    if not is_loaded():
        return None
    return _MODULE.stat().st_ino if _MODULE.exists() else 0


class Asker:
    """A conversation with the namespace this thread is in now. Raises OSError where the kernel refuses."""

    def __init__(self) -> None:
        self._asked = _opened()
        self._asked.settimeout(_PATIENCE_S)
        self._number = 0

    def dump(self) -> Iterator[Translation]:
        """All there are now. Before 5.16 the kernel tells every connection, and most of them are passed over here."""
        self._number += 1
        bit = struct.pack(">I", _DST_NAT)
        wanted = b"".join(struct.pack("=HH", 8, kind) + bit for kind in (_STATUS, _STATUS_MASK))
        self._asked.send(numbered(message(_GET, _REQUEST_DUMP, socket.AF_UNSPEC, wanted), self._number))
        while True:
            for kind, number, body in _messages(self._asked.recv(1 << 18)):
                if number != self._number:
                    continue
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise OSError(code, os.strerror(code))
                if found := translation(body):
                    yield found

    def close(self) -> None:
        self._asked.close()


class Tracker:
    """Who is told what comes and goes in the namespace this thread is in now. Raises OSError where it refuses."""

    def __init__(self) -> None:
        self._events = _opened()
        try:
            self._events.setblocking(False)
            with suppress(OSError):
                self._events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in _FILTER))
            self._events.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                                    struct.pack("@HP", len(_FILTER), ctypes.addressof(code)))
            self._events.bind((0, _GROUP_NEW | _GROUP_DESTROY))
        except OSError:
            self._events.close()
            raise
        try:
            self.tells = int(_EVENTS.read_text()) != 0
        except (OSError, ValueError):
            self.tells = True
        """Whether it speaks of connections as they come; else what there is must be asked for, again and again."""

    def fileno(self) -> int:
        return self._events.fileno()

    def events(self) -> Iterator[tuple[bool, Translation]]:
        """(whether it ended, which) of what happened. Raises OSError ENOBUFS once when some of it was lost."""
        while True:
            try:
                data = self._events.recv(1 << 16)
            except BlockingIOError:
                return
            for kind, _, body in _messages(data):
                if kind in (_NEW, _DELETE) and (found := translation(body)):
                    yield kind == _DELETE, found

    def close(self) -> None:
        self._events.close()


def translation(body: bytes) -> Translation | None:
    """Of a message's body, from struct nfgenmsg on; None when the destination is the one that was asked for."""
    told = attributes(body[4:])
    if not int.from_bytes(told.get(_STATUS, b""), "big") & _DST_NAT:
        return None
    try:
        protocol, source, source_port, destination, destination_port = _tuple(told[_ORIGINAL])
        _, real, real_port, _, _ = _tuple(told[_REPLY])
    except KeyError:
        return None  # of a protocol without ports
    return translated(Translation(protocol, source, source_port, destination, destination_port, real, real_port))


def _tuple(data: bytes) -> tuple[int, bytes, int, bytes, int]:
    """Of a CTA_TUPLE: protocol, then source and destination. Raises KeyError."""
    parts = attributes(data)
    addresses, protocol = attributes(parts[1]), attributes(parts[2])
    first = 1 if 1 in addresses else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
    source, destination = (address(addresses[end]) for end in (first, first + 1))
    return (protocol[1][0], source, int.from_bytes(protocol[2], "big"),
            destination, int.from_bytes(protocol[3], "big"))


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= 16:
        size, kind, _, number = struct.unpack_from("=IHHI", data)
        yield kind, number, data[16:size]
        data = data[(max(size, 16) + 3) & ~3:]


def _opened() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            raise OSError(errno.ENOENT, "no nfnetlink") from error
        raise
