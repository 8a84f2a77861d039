"""An IP packet, whole or cut short, taken apart as far as its UDP or TCP payload."""

from __future__ import annotations

import struct
from typing import NamedTuple

UDP, TCP = 17, 6
SYN = 2

# A packet without tags whose third and fourth byte look like a tag's EtherType is longer: IPv4 has its length there,
# and after IPv6's flow label follows a length that would look like the version announced.
UNTAGGED = 2048
_VERSIONS = {b"\x08\x00": 4, b"\x86\xdd": 6}
_IN_TAGS = frozenset((*_VERSIONS, b"\x81\x00"))
_MAPPED = bytes(10) + b"\xff\xff"
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
# More than anybody sends, fewer than make a packet dear: as many as the filter in the kernel follows.
EXTENSIONS = 6

# After the version and IHL: total length, flags and fragment offset, protocol, source, destination.
_V4 = struct.Struct("!xxHxxHxBxx4s4s")
# Payload length, next header, source, destination.
_V6 = struct.Struct("!4xHBx16s16s")
_UDP = struct.Struct("!HHH")
# Ports, sequence number, data offset, flags.
_TCP = struct.Struct("!HHI4xBB")


class Segment(NamedTuple):
    """One UDP datagram or TCP segment. Addresses are 16 bytes, v4-mapped for IPv4; `sequence` and `flags` are TCP's.

    `is_whole` is false where `payload` is only the beginning: the first fragment of a packet, or a packet cut short.
    """

    transport: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    payload: bytes
    is_whole: bool
    sequence: int = 0
    flags: int = 0


def parse(data: bytes) -> Segment | None:
    """The segment in a packet that begins at its network header, None where there is none. Raises nothing.

    What is left of VLAN tags may come before it: kernels take one off, and not of what they send. Later fragments
    have no ports and are none.
    """
    start = _after_tags(data) if data[2:4] in _IN_TAGS and len(data) < UNTAGGED else 0
    if len(data) < start + 20:
        return None
    version = data[start] >> 4
    if version == 4:
        return _parse_v4(data, start)
    return _parse_v6(data, start) if version == 6 else None


def _after_tags(data: bytes) -> int:
    """Where the packet begins: what the tag announces must follow it."""
    start = 4
    if data[2:4] == b"\x81\x00":
        start = 8
    version = _VERSIONS.get(data[start - 2:start])
    return start if version and data[start:start + 1] and data[start] >> 4 == version else 0


def _parse_v4(data: bytes, start: int) -> Segment | None:
    total, fragment, protocol, source, destination = _V4.unpack_from(data, start)
    header = (data[start] & 15) * 4
    if header < 20 or fragment & 0x1FFF:
        return None
    # A length of 0 is that of a packet the network card has yet to cut up: then it is what there is.
    end = start + total if total else len(data)
    return _parse_transport(data, protocol, start + header, end, not fragment & 0x2000, _MAPPED + source,
                            _MAPPED + destination)


def _parse_v6(data: bytes, start: int) -> Segment | None:
    if len(data) < start + 40:
        return None
    length, header, source, destination = _V6.unpack_from(data, start)
    at = start + 40
    end = at + length if length else len(data)
    is_whole = True
    for _ in range(EXTENSIONS):
        if header in (UDP, TCP) or len(data) < at + 8:
            break
        if header == _FRAGMENT:
            fragment = int.from_bytes(data[at + 2:at + 4])
            if fragment >> 3:
                return None
            is_whole = is_whole and not fragment & 1
            size = 8
        elif header == _AUTHENTICATION:
            size = (data[at + 1] + 2) * 4
        elif header in (_HOP_BY_HOP, _ROUTING, _DESTINATION):
            size = (data[at + 1] + 1) * 8
        else:
            return None
        header = data[at]
        at += size
    return _parse_transport(data, header, at, end, is_whole, source, destination)


def _parse_transport(data: bytes, protocol: int, at: int, end: int, is_whole: bool, source: bytes,
                     destination: bytes) -> Segment | None:
    if protocol == UDP and at + 8 <= min(end, len(data)):
        source_port, destination_port, length = _UDP.unpack_from(data, at)
        # A datagram ends where its own header says, unless that is past the packet.
        end = min(end, at + length) if length >= 8 and is_whole else end
        return Segment(UDP, source, source_port, destination, destination_port, data[at + 8:end],
                       is_whole and end <= len(data))
    if protocol == TCP and at + 20 <= min(end, len(data)):
        source_port, destination_port, sequence, offset, flags = _TCP.unpack_from(data, at)
        begin = at + (offset >> 4) * 4
        if begin < at + 20 or begin > end:
            return None
        return Segment(TCP, source, source_port, destination, destination_port, data[begin:end],
                       is_whole and end <= len(data), sequence, flags)
    return None
