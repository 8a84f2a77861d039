"""The classic BPF that lets only one port's packets out of the kernel: assembled here, run there for every packet.

Classic, because every kernel has it and the verifier has no say: it can only look forward and end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from collector.protocols.packets import EXTENSIONS, TCP, UDP, UNTAGGED

# Instruction codes of <linux/filter.h>.
_LD_BYTE_X, _LD_HALF_X, _LD_BYTE, _LD_HALF, _LD_WORD, _LD_LENGTH = 0x50, 0x48, 0x30, 0x28, 0x20, 0x80
_LD_CONSTANT, _LDX_CONSTANT, _LD_MEMORY, _LDX_MEMORY, _ST, _TAX = 0x00, 0x01, 0x60, 0x61, 0x02, 0x07
_ADD, _AND, _RSH, _LSH, _ADD_X = 0x04, 0x54, 0x74, 0x64, 0x0C
_JUMP, _JEQ, _JGE, _JSET, _RETURN = 0x05, 0x15, 0x35, 0x45, 0x06

_AD = 0xFFFF_F000
_PACKET_TYPE, _INTERFACE = _AD + 4, _AD + 8
_OUTGOING = 4
_LOOPBACK_INTERFACE = 1
_WHOLE = 0x40000
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60


@dataclass(slots=True)
class _Assembler:
    """Instructions with labels; conditions jump to a label when true and go on when false."""

    code: list[tuple[int, int, str | None]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def add(self, code: int, k: int = 0, to: str | None = None) -> None:
        self.code.append((code, k, to))

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def assemble(self) -> bytes:
        """``struct sock_filter[]``. A condition reaches 255 instructions far, a plain jump anywhere."""
        made = b""
        for at, (code, k, to) in enumerate(self.code):
            ahead = self.labels[to] - at - 1 if to else 0
            plain = code == _JUMP
            made += struct.pack("=HBBI", code, 0 if plain else ahead, 0, ahead if plain else k)
        return made


def port_filter(port: int, one_of: int = 1) -> bytes:
    """For a packet socket that is given packets from their network header on (SOCK_DGRAM).

    It passes UDP and TCP with the port at either end, over IPv4 and IPv6, through extension headers and behind what is
    left of VLAN tags; no fragment but the first, which is the one with ports. What the loopback interface shows on its
    way out it shows on its way in once more: the first of the two is left. With `one_of`, a power of two, it passes
    only those whose other port is a multiple of it.
    """
    a = _Assembler()
    a.add(_LD_WORD, _PACKET_TYPE)
    a.add(_JEQ, _OUTGOING, "outgoing")
    a.add(_JUMP, to="tag")
    a.label("outgoing")
    a.add(_LD_WORD, _INTERFACE)
    a.add(_JEQ, _LOOPBACK_INTERFACE, "drop near")
    a.label("tag")
    a.add(_LDX_CONSTANT, 0)
    a.add(_LD_LENGTH)
    a.add(_JGE, UNTAGGED, "version near")
    a.add(_LD_HALF, 2)
    a.add(_JEQ, 0x0800, "one tag, IPv4")
    a.add(_JEQ, 0x86DD, "one tag, IPv6")
    a.add(_JEQ, 0x8100, "two tags")
    a.label("version near")
    a.add(_JUMP, to="version")
    a.label("drop near")
    a.add(_RETURN, 0)
    a.label("two tags")
    a.add(_LD_HALF, 6)
    a.add(_JEQ, 0x0800, "two tags, IPv4")
    a.add(_JEQ, 0x86DD, "two tags, IPv6")
    a.add(_JUMP, to="version")
    for tags, at in (("one tag", 4), ("two tags", 8)):
        for version, kind in ((4, "IPv4"), (6, "IPv6")):
            a.label(f"{tags}, {kind}")
            a.add(_LD_BYTE, at)
            a.add(_RSH, 4)
            a.add(_JEQ, version, f"after {tags}, {kind}")
            a.add(_JUMP, to="version")
            a.label(f"after {tags}, {kind}")
            a.add(_LDX_CONSTANT, at)
            a.add(_JUMP, to="version")
    a.label("version")
    a.add(_LD_BYTE_X, 0)
    a.add(_RSH, 4)
    a.add(_JEQ, 4, "v4")
    a.add(_JEQ, 6, "v6")
    a.add(_RETURN, 0)
    _v4(a)
    _v6(a)
    a.label("ports")
    for at in (0, 2):
        a.add(_LD_HALF_X, at)
        a.add(_JEQ, port, "pass")
    a.label("drop")
    a.add(_RETURN, 0)
    a.label("pass")
    if one_of > 1:
        # Which of the two is the other one does not matter to their sum.
        a.add(_LD_HALF_X, 2)
        a.add(_ST, 1)
        a.add(_LD_HALF_X, 0)
        a.add(_LDX_MEMORY, 1)
        a.add(_ADD_X)
        a.add(_AND, one_of - 1)
        a.add(_JEQ, port & (one_of - 1), "one of many")
        a.add(_RETURN, 0)
        a.label("one of many")
    a.add(_RETURN, _WHOLE)
    return a.assemble()


def _v4(a: _Assembler) -> None:
    """From X, the packet, to X, the transport header."""
    a.label("v4")
    a.add(_LD_HALF_X, 6)
    a.add(_JSET, 0x1FFF, "drop v4")
    a.add(_LD_BYTE_X, 9)
    a.add(_JEQ, UDP, "v4 ports")
    a.add(_JEQ, TCP, "v4 ports")
    a.label("drop v4")
    a.add(_RETURN, 0)
    a.label("v4 ports")
    a.add(_LD_BYTE_X, 0)
    a.add(_AND, 15)
    a.add(_LSH, 2)
    a.add(_ADD_X)
    a.add(_TAX)
    a.add(_JUMP, to="ports")


def _skip_by_length(a: _Assembler, more: int, shift: int) -> None:
    """Keeps the number of the next header, and leaves this one's size: its length byte and `more`, shifted."""
    a.add(_LD_BYTE_X, 0)
    a.add(_ST, 0)
    a.add(_LD_BYTE_X, 1)
    a.add(_ADD, more)
    a.add(_LSH, shift)


def _v6(a: _Assembler) -> None:
    """The same; memory slot 0 keeps the number of the next header while its place is worked out."""
    a.label("v6")
    a.add(_LD_BYTE_X, 6)
    a.add(_ST, 0)
    a.add(_LD_CONSTANT, 40)
    a.add(_ADD_X)
    a.add(_TAX)
    for number in range(EXTENSIONS):
        def here(name: str, number: int = number) -> str:
            return f"{name} {number}"

        a.add(_LD_MEMORY, 0)
        for protocol, where in ((UDP, "found"), (TCP, "found"), (_HOP_BY_HOP, "skip"), (_ROUTING, "skip"),
                                (_DESTINATION, "skip"), (_FRAGMENT, "fragment"), (_AUTHENTICATION, "authentication")):
            a.add(_JEQ, protocol, here(where))
        a.label(here("drop"))
        a.add(_RETURN, 0)
        a.label(here("found"))
        a.add(_JUMP, to="ports")
        a.label(here("fragment"))
        a.add(_LD_HALF_X, 2)
        a.add(_RSH, 3)
        a.add(_JEQ, 0, here("first"))
        a.add(_RETURN, 0)
        a.label(here("first"))
        a.add(_LD_BYTE_X, 0)
        a.add(_ST, 0)
        a.add(_LD_CONSTANT, 8)
        a.add(_JUMP, to=here("next"))
        a.label(here("authentication"))
        _skip_by_length(a, 2, 2)
        a.add(_JUMP, to=here("next"))
        a.label(here("skip"))
        _skip_by_length(a, 1, 3)
        a.label(here("next"))
        a.add(_ADD_X)
        a.add(_TAX)
    a.add(_LD_MEMORY, 0)
    a.add(_JEQ, UDP, "ports")
    a.add(_JEQ, TCP, "ports")
    a.add(_RETURN, 0)
