"""Packets of one network namespace, in a ring of memory the kernel writes and we read without system calls."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

# <linux/if_packet.h>, <linux/if_ether.h>; Python's socket has none of the first.
_SOL_PACKET = 263
_RX_RING, _STATISTICS, _VERSION = 5, 6, 10
_TPACKET_V3 = 2
_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_STATUS_USER = 1

# A block that is not full is handed over after this time.
RETIRE_MS = 50
_BLOCK_STATUS, _BLOCK_PACKETS, _BLOCK_FIRST = 8, 12, 16
_U32 = struct.Struct("=I")
# struct tpacket3_hdr: next, seconds, nanoseconds, captured, length, status, where the packet begins (twice).
_PACKET = struct.Struct("=IIIIIIHH")
_REQUEST = struct.Struct("=7I")


class Shape(NamedTuple):
    """So many blocks of so many bytes each.

    No packet may be longer than a block. Few packets, too, use one up every RETIRE_MS: the number of blocks is how
    long nobody need look.
    """

    block: int
    blocks: int


class Packet(NamedTuple):
    """One packet from its network header on, with the kernel's time in ns since the epoch."""

    time_ns: int
    data: bytes
    is_whole: bool


class PacketRing:
    """Every packet of every interface of the namespace this thread is in that the filter passes.

    TPACKET_V3, which is as old as Linux 3.2: each packet takes only its own room, and its time comes with it.
    """

    def __init__(self, code: bytes, shape: Shape) -> None:
        """`code` is classic BPF. Raises OSError."""
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        self._memory: mmap.mmap | None = None
        self._block, self._shape = 0, shape
        size = shape.block * shape.blocks
        self.lost = 0
        """Packets that found the ring full, so far."""
        try:
            attach(self._socket, code)
            self._socket.setsockopt(_SOL_PACKET, _VERSION, _U32.pack(_TPACKET_V3))
            frames = size // 2048
            self._socket.setsockopt(_SOL_PACKET, _RX_RING,
                                    _REQUEST.pack(*shape, 2048, frames, RETIRE_MS, 0, 0))
            self._memory = mmap.mmap(self._socket.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            # From here on packets come: none came before the filter was there.
            _bind_everywhere(self._socket)
        except BaseException:
            self.close()
            raise

    def pass_only(self, code: bytes) -> None:
        """Another filter in the place of the one there is. Raises OSError."""
        attach(self._socket, code)

    def fileno(self) -> int:
        return self._socket.fileno()

    def packets(self) -> Iterator[Packet]:
        """Those of the oldest block that is full or old enough; none where there is no such block.

        It is the kernel's again when its last packet has been taken.
        """
        memory = self._memory
        assert memory is not None
        base = self._block * self._shape.block
        if not _U32.unpack_from(memory, base + _BLOCK_STATUS)[0] & _STATUS_USER:
            return
        count, first = _U32.unpack_from(memory, base + _BLOCK_PACKETS)[0], _U32.unpack_from(
            memory, base + _BLOCK_FIRST)[0]
        at = base + first
        for _ in range(count):
            ahead, seconds, nanoseconds, captured, length, _, begin, _ = _PACKET.unpack_from(memory, at)
            yield Packet(seconds * 1_000_000_000 + nanoseconds, memory[at + begin:at + begin + captured],
                         captured == length)
            at += ahead
        _U32.pack_into(memory, base + _BLOCK_STATUS, 0)
        self._block = (self._block + 1) % self._shape.blocks

    def count_losses(self) -> int:
        """How many more packets were lost since it was asked last; reading the kernel's number makes it 0."""
        _, dropped, _ = struct.unpack("=III", self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 12))
        self.lost += dropped
        return int(dropped)

    def close(self) -> None:
        if self._memory is not None:
            with suppress(BufferError):
                self._memory.close()
        self._socket.close()


def _bind_everywhere(sock: socket.socket) -> None:
    """bind(2) to every protocol and no interface, which is all of them: Python's own insists on the name of one."""
    # struct sockaddr_ll: family, protocol in network order, interface, what a binding ignores.
    address = struct.pack("=HHi12x", socket.AF_PACKET, socket.htons(_ETH_P_ALL), 0)
    if ctypes.CDLL(None, use_errno=True).bind(sock.fileno(), address, len(address)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def attach(sock: socket.socket, code: bytes) -> None:
    """Gives a socket a classic BPF filter. Raises OSError when the kernel refuses it."""
    program = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(code) // 8,
                                                                       ctypes.addressof(program)))
