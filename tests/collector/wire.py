"""Packets and DNS messages built byte by byte, as input for what takes them apart."""

import ipaddress
import struct

MAPPED = bytes(10) + b"\xff\xff"
UDP, TCP = 17, 6
SYN, ACK, FIN = 2, 16, 1


def packed(text):
    """16 bytes, v4-mapped for IPv4."""
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else MAPPED + address.packed


def udp(source_port, destination_port, payload):
    return struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0) + payload


def tcp(source_port, destination_port, payload=b"", sequence=0, flags=ACK, options=b""):
    return struct.pack("!HHIIBBHHH", source_port, destination_port, sequence, 0, (20 + len(options)) // 4 << 4, flags,
                       0, 0, 0) + options + payload


def ipv4(source, destination, protocol, payload, fragment=0, options=b""):
    return struct.pack("!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), 1, fragment, 64,
                       protocol, 0, ipaddress.ip_address(source).packed,
                       ipaddress.ip_address(destination).packed) + options + payload


def ipv6(source, destination, protocol, payload, extensions=()):
    """`extensions` are (number, bytes after the first two) in their order on the wire."""
    numbers = [number for number, _ in extensions] + [protocol]
    chain = b""
    for (number, body), following in zip(extensions, numbers[1:], strict=True):
        units = (2 + len(body)) // 4 - 2 if number == 51 else 0 if number == 44 else (2 + len(body)) // 8 - 1
        chain += bytes([following, units]) + body
    body = chain + payload
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), numbers[0], 64, ipaddress.ip_address(source).packed,
                       ipaddress.ip_address(destination).packed) + body


def name(text):
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".") if label) + b"\0"


def question(text, kind=1):
    return name(text) + struct.pack("!HH", kind, 1)


def query(number, text, kind=1):
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + question(text, kind)


def record(owner, kind, data, ttl=300, class_=1):
    return owner + struct.pack("!HHIH", kind, class_, ttl, len(data)) + data


def response(number, text, rcode=0, answers=(), additionals=(), kind=1, flags=0):
    return struct.pack("!6H", number, 0x8180 | flags | rcode, 1, len(answers), 0, len(additionals)) + question(
        text, kind) + b"".join(answers) + b"".join(additionals)


def opt(extended):
    """An EDNS record with the upper bits of the rcode."""
    return record(b"\0", 41, b"", ttl=extended << 24, class_=1232)
