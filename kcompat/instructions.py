"""eBPF machine code as values, and what can be said of a program without running it."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from kcompat.bpf import ObjectProgram

# Registers, then the numbers of include/uapi/linux/bpf_common.h and bpf.h.
FRAME, REGISTERS = 10, 11
LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
IMM64, XADD, PSEUDO_CALL = 0x18, 0xC0, 1
LOOKUP = 1  # bpf_map_lookup_elem
STACK = 512
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
MOV, ADD, SUB = 0xB0, 0x00, 0x10
JA, JEQ, JNE, CALL, EXIT = 0x00, 0x10, 0x50, 0x80, 0x90


class Instruction(NamedTuple):
    code: int
    dst: int
    src: int
    offset: int
    immediate: int

    @property
    def group(self) -> int:
        return self.code & 7

    @property
    def operation(self) -> int:
        return self.code & 0xF0

    @property
    def size(self) -> int:
        """Bytes that are loaded or stored."""
        return _SIZES[self.code & 0x18]

    @property
    def by_register(self) -> bool:
        """Of arithmetic and jumps: the other operand is `src`, not `immediate`."""
        return bool(self.code & 8)


def decode(program: ObjectProgram) -> list[Instruction]:
    return [Instruction(code, registers & 15, registers >> 4, offset, immediate)
            for code, registers, offset, immediate in struct.iter_unpack("<BBhi", program.instructions)]


def malformed(code: list[Instruction]) -> Iterator[tuple[int, str]]:
    """What no verifier takes and no compiler writes: jumps out of the program, registers there are not."""
    for at, i in enumerate(code):
        if i.dst >= REGISTERS or i.src >= REGISTERS:
            yield at, f"names r{max(i.dst, i.src)}"
        elif not all(0 <= to < len(code) for to in ways(code, at)):
            yield at, "leads out of the program"


def forms_of(code: list[Instruction]) -> dict[str, bool]:
    """Kinds of instruction that came later than eBPF itself."""
    return {
        "loops": has_cycle(code),
        "calls_functions": any(i.group == JMP and i.operation == CALL and i.src == PSEUDO_CALL for i in code),
        "short_jumps": any(i.group == JMP32 for i in code),
        "atomics": any(i.group == STX and i.code & 0xE0 == XADD and i.immediate for i in code),
    }


def has_cycle(code: list[Instruction]) -> bool:
    """Whether some path comes back to where it was. A jump backwards alone is none: compilers share ends of code."""
    begun: set[int] = set()
    ended: set[int] = set()
    pending = [0]
    while pending:
        at = pending[-1]
        begun.add(at)
        open_ways = [to for to in ways(code, at) if to not in ended]
        if any(to in begun for to in open_ways):
            return True
        if open_ways:
            pending.append(open_ways[0])
        else:
            ended.add(pending.pop())
    return False


def ways(code: list[Instruction], at: int) -> tuple[int, ...]:
    """Where control goes from an instruction."""
    i = code[at]
    if i.group not in (JMP, JMP32) or i.operation == CALL:
        return (at + 1 + (i.code == IMM64),)
    if i.operation == EXIT:
        return ()
    there = at + 1 + i.offset
    return (there,) if i.operation == JA else (there, at + 1)


def deepest(code: list[Instruction]) -> int:
    """Bytes of stack: the lowest address the frame pointer, or what is made from it by addition, is used with."""
    low = [i.offset for i in code if (i.group == LDX and i.src == FRAME)
           or (i.group in (ST, STX) and i.dst == FRAME)]
    low += [i.immediate for before, i in itertools.pairwise(code)
            if i.code == ALU64 | ADD and before.code == ALU64 | MOV | 8 and before.src == FRAME
            and before.dst == i.dst]
    return -min(low, default=0)


def helpers_of(code: list[Instruction]) -> frozenset[int]:
    return frozenset(i.immediate for i in code if i.group == JMP and i.operation == CALL and i.src != PSEUDO_CALL)
