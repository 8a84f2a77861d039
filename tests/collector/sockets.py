"""Sockets as programs see them, for `bpf_machine`: bytes with fields where the given offsets say."""

import socket
import struct

from kcompat.fields import CATALOGUE, find
from kcompat.offsets import Offset, Offsets

# No field reaches into the next, and all of them lie in so many bytes.
SIZE = 4096
OFFSETS = Offsets([Offset.known(field, 16 * (number + 1), "test", width=field.width)
                   for number, field in enumerate(CATALOGUE)])
TCP, UDP = 6, 17
# struct pt_regs of x86_64 by 8 bytes: where the arguments are, and what is returned.
_ARGUMENTS, _RETURNED, _NUMBER, _REGISTERS = (14, 13, 12, 11, 9), 10, 15, 21


def regs(*arguments, returned=0):
    """The context of a probe."""
    words = [0] * _REGISTERS
    for at, value in zip(_ARGUMENTS, arguments, strict=False):
        words[at] = value
    words[_RETURNED] = returned & 0xFFFF_FFFF_FFFF_FFFF
    return struct.pack(f"<{_REGISTERS}Q", *words)


def call(number, second, third=0):
    """The registers of a thread in a system call."""
    words = [0] * _REGISTERS
    words[_NUMBER], words[_ARGUMENTS[1]], words[_ARGUMENTS[2]] = number, second, third
    return struct.pack(f"<{_REGISTERS}Q", *words)


def arguments(*values):
    """The context of a raw tracepoint."""
    return struct.pack(f"<{len(values)}Q", *(value & 0xFFFF_FFFF_FFFF_FFFF for value in values))


class Sock:
    """An IPv4 socket of one namespace; assign fields by their kernel names."""

    def __init__(self, machine, protocol, local, remote):
        self._machine = machine
        net = machine.allocate(bytes(SIZE))
        self.at = machine.allocate(bytes(SIZE))
        self._put(net, "net.ns.inum", 7)
        self.becomes(protocol, local, remote)
        self.set("sock_common.skc_net", net)

    def becomes(self, protocol, local, remote):
        """Another socket at the same address of memory."""
        self.set("sock.sk_protocol", protocol)
        self.set("sock_common.skc_family", socket.AF_INET)
        self.set("sock_common.skc_rcv_saddr", int.from_bytes(socket.inet_aton(local[0]), "little"))
        self.set("sock_common.skc_daddr", int.from_bytes(socket.inet_aton(remote[0]), "little"))
        self.set("sock_common.skc_num", local[1])
        self.set("sock_common.skc_dport", socket.htons(remote[1]))

    def set(self, name, value):
        self._put(self.at, name, value)

    def get(self, name):
        field = find(name)
        return int.from_bytes(self._machine.read(self.at + OFFSETS[field].offset, field.width), "little")

    def _put(self, at, name, value):
        field = find(name)
        self._machine.write(at + OFFSETS[field].offset, value.to_bytes(field.width, "little"))
