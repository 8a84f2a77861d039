"""Whether an address is a network namespace's own: its routing tables are asked, through rtnetlink."""

from __future__ import annotations

import socket
import struct
import time

from collector.addresses import V4_MAPPED

_REQUEST = 1
_GETROUTE, _NEWROUTE = 26, 24
_RTA_DST = 1
_RTN_LOCAL = 2
# Addresses come and go: an answer is asked for again after this time.
_TRUSTED_S = 10.0
_BOUND = 4096
_PATIENCE_S = 1.0


class Routes:
    """A conversation with the namespace this thread is in now; it stays there when the thread leaves."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_PATIENCE_S)
        self._sequence = 0
        self._known: dict[bytes, bool] = {}
        self._forget_at_s = 0.0

    def is_local(self, address: bytes) -> bool:
        """Whether a packet to this 16-byte address, v4-mapped for IPv4, ends in the namespace."""
        now_s = time.monotonic()
        if now_s > self._forget_at_s or len(self._known) > _BOUND:
            self._known.clear()
            self._forget_at_s = now_s + _TRUSTED_S
        known = self._known.get(address)
        if known is None:
            known = self._known[address] = self._ask(address)
        return known

    def _ask(self, address: bytes) -> bool:
        family, packed = (socket.AF_INET, address[12:]) if address.startswith(V4_MAPPED) else (socket.AF_INET6, address)
        self._sequence += 1
        # struct rtmsg: family, length of the destination in bits, then what a question leaves 0.
        body = struct.pack("=BB10x", family, len(packed) * 8) + struct.pack("=HH", 4 + len(packed), _RTA_DST) + packed
        try:
            self._socket.send(struct.pack("=IHHII", 16 + len(body), _GETROUTE, _REQUEST, self._sequence, 0) + body)
            while True:
                answer = self._socket.recv(8192)
                if struct.unpack_from("=I", answer, 8)[0] == self._sequence:
                    # The type is the eighth byte of struct rtmsg. An error, as for no route at all, is another answer.
                    return struct.unpack_from("=H", answer, 4)[0] == _NEWROUTE and answer[16 + 7] == _RTN_LOCAL
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()
