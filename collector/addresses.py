"""Addresses and ports as the flow datasets write them: text, type, family, and the starred client port."""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, inet_ntop
from typing import NamedTuple

V4_MAPPED = bytes(10) + b"\xff\xff"
_CACHED_ADDRESSES = 1 << 14


_V4_TYPES: dict[bytes, str] = {}


class Address(NamedTuple):
    """What the tags say of one address; `type` is private, loopback, multicast or other."""

    text: str
    type: str
    family: str
    is_zero: bool


class Cidr(NamedTuple):
    """A network as two integers, because `ipaddress` objects are too slow to ask once per address."""

    size: int
    shift: int
    prefix: int

    @classmethod
    def of(cls, network: IPv4Network | IPv6Network) -> Cidr:
        size, packed, length = network.max_prefixlen // 8, network.network_address.packed, network.prefixlen
        if packed.startswith(V4_MAPPED) and length >= 96:
            size, packed, length = 4, packed[12:], length - 96
        shift = size * 8 - length
        return cls(size, shift, int.from_bytes(packed) >> shift)

    def holds(self, address: bytes) -> bool:
        """Whether a packed address, v4-mapped or not, lies in the network."""
        packed = reduce_mapped(address)
        return len(packed) == self.size and int.from_bytes(packed) >> self.shift == self.prefix


def reduce_mapped(address: bytes) -> bytes:
    """The 4 bytes inside ::ffff:a.b.c.d; any other address as it is."""
    return address[12:] if len(address) == 16 and address.startswith(V4_MAPPED) else address


def packed_address(text: str) -> bytes | None:
    """The 16 bytes of an address, v4-mapped for IPv4; None for what is none."""
    try:
        if ":" in text:
            return socket.inet_pton(socket.AF_INET6, text)
        return V4_MAPPED + socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=_CACHED_ADDRESSES)
def describe(address: bytes) -> Address:
    """Everything the tags need of one packed address."""
    text, kind = text_and_type(address)
    packed = reduce_mapped(address)
    return Address(text, kind, "IPv4" if len(packed) == 4 else "IPv6", not any(packed))


def text_and_type(address: bytes) -> tuple[str, str]:
    """For addresses that are many, each seen once: the type of IPv4's is in their first two bytes."""
    if not address.startswith(V4_MAPPED) or len(address) != 16:
        packed = reduce_mapped(address)
        return address_text(packed), address_type(packed)
    kind = _V4_TYPES.get(address[12:14])
    if kind is None:
        kind = _V4_TYPES[address[12:14]] = address_type(address[12:])
    return inet_ntop(AF_INET, address[12:]), kind


def address_text(packed: bytes) -> str:
    """Dotted, or RFC 5952. The C library would write ::/96 as ::1.2.3.4, kept for known prefixes (section 5)."""
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    if packed.startswith(bytes(12)):
        high, low = divmod(int.from_bytes(packed[12:]), 1 << 16)
        return f"::{high:x}:{low:x}" if high else f"::{low:x}" if low else "::"
    return socket.inet_ntop(socket.AF_INET6, packed)


def address_type(packed: bytes) -> str:
    """private (RFC 1918, fc00::/7), loopback, multicast or other, asked in that order."""
    first = packed[0]
    if len(packed) == 4:
        if first == 10 or (first == 172 and packed[1] >> 4 == 1) or (first == 192 and packed[1] == 168):
            return "private"
        return "loopback" if first == 127 else "multicast" if first >> 4 == 14 else "other"
    if first >> 1 == 0xFC >> 1:
        return "private"
    return "multicast" if first == 0xFF else "loopback" if packed == bytes(15) + b"\x01" else "other"


def star_ports(local_port: int, remote_port: int, direction: str, ephemeral_port: int) -> tuple[str, str]:
    """(src_port, dst_port): the client's is `*` from `ephemeral_port` on, so its many connections are one flow."""
    if direction == "outgoing":
        return "*" if local_port >= ephemeral_port else str(local_port), str(remote_port)
    return str(local_port), "*" if remote_port >= ephemeral_port else str(remote_port)
