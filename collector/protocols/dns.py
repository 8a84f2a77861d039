"""A DNS message as far as dnsflow needs it: whose question it is, how it was answered, which addresses it gave.

dnspython makes text of names and types. It would take the rest apart too, in half a millisecond a message: all of it
and as objects. What is asked here of every packet lies at places that are found without looking at the rest.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

_HEADER = struct.Struct("!6H")
_QR = 0x8000
_A, _AAAA, _OPT = 1, 28, 41
_IN = 1
_MAPPED = bytes(10) + b"\xff\xff"
# Type, class, TTL, length of the data.
_RECORD = struct.Struct("!HHIH")
_LONGEST_NAME = 255
_CACHED_NAMES = 1 << 14


class Message(NamedTuple):
    """One message. `question` is the first one on the wire, its name in lower case; empty where there is none.

    `rcode` has the upper bits of EDNS (RFC 6891 6.1.3) where the message is whole. `addresses` are of the answer's A
    and AAAA records, 16 bytes, v4-mapped for IPv4, each with the shortest TTL of the answer up to it.
    """

    id: int
    is_response: bool
    rcode: int
    question: bytes
    addresses: tuple[tuple[bytes, int], ...] = ()


def parse(wire: bytes) -> Message | None:
    """The message, also where it is cut short or continues in nonsense; None where it is none. Raises nothing."""
    if len(wire) < 12:
        return None
    number, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(wire)
    question, at = b"", 12
    if questions:
        end = _after_name(wire, 12)
        if end is None or end + 4 > len(wire):
            return None
        # Lengths of labels are below "A": only letters change.
        question, at = wire[12:end].lower() + wire[end:end + 4], end + 4
    if not flags & _QR:
        return Message(number, False, 0, question) if question else None
    rcode = flags & 15
    for _ in range(questions - 1):
        end = _after_name(wire, at)
        if end is None or end + 4 > len(wire):
            return Message(number, True, rcode, question)
        at = end + 4
    # Beyond the answers only the additional section has anything of interest, and it is the last.
    extended, addresses = _records(wire, at, answers, answers + (authorities + additionals if additionals else 0))
    return Message(number, True, rcode | extended << 4, question, addresses)


def _records(wire: bytes, at: int, answers: int, count: int) -> tuple[int, tuple[tuple[bytes, int], ...]]:
    """The upper bits of the rcode and the addresses of the first `answers` records, as far as the wire goes."""
    addresses: list[tuple[bytes, int]] = []
    extended, shortest = 0, 0xFFFF_FFFF
    for number in range(count):
        # Most owners are a pointer to the question.
        start = at + 2 if wire[at:at + 1] >= b"\xc0" else _after_name(wire, at)
        if start is None or start + 10 > len(wire):
            break
        kind, class_, ttl, length = _RECORD.unpack_from(wire, start)
        data, at = start + 10, start + 10 + length
        if at > len(wire):
            break
        if kind == _OPT and number >= answers:
            extended = ttl >> 24
        elif number < answers and class_ == _IN:
            shortest = min(shortest, ttl)
            if kind == _A and length == 4:
                addresses.append((_MAPPED + wire[data:at], shortest))
            elif kind == _AAAA and length == 16:
                addresses.append((wire[data:at], shortest))
    return extended, tuple(addresses)


def _after_name(wire: bytes, at: int) -> int | None:
    """Where the name that begins at `at` ends; None where it does not. Pointers are not followed: they end it."""
    last = min(len(wire), at + _LONGEST_NAME)
    while at < last:
        length = wire[at]
        if length == 0:
            return at + 1
        if length >= 0xC0:
            return at + 2 if at + 2 <= len(wire) else None
        if length > 63:
            return None
        at += length + 1
    return None


@lru_cache(maxsize=_CACHED_NAMES)
def question_text(question: bytes) -> tuple[str, str]:
    """Name without the dot at its end and type, as dnspython writes them: odd bytes as \\\\DDD, odd types as TYPE999.

    Two empty texts for a question that cannot be written, as a pointer cannot, having nothing before it to point at.
    """
    # Here, for importing them takes a tenth of a second.
    import dns.exception
    import dns.name
    import dns.rdatatype

    try:
        name, used = dns.name.from_wire(question, 0)
    except dns.exception.DNSException:
        return "", ""
    text = name.to_text(omit_final_dot=True) if len(name) > 1 else "."
    return text, dns.rdatatype.to_text(dns.rdatatype.RdataType.make(int.from_bytes(question[used:used + 2])))
