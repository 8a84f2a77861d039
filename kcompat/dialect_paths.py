"""How many instructions the verifiers before 4.7 go through, and what of the stack they find unwritten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kcompat.bpf import ObjectProgram
from kcompat.instructions import (
    ADD,
    ALU,
    ALU64,
    CALL,
    EXIT,
    FRAME,
    IMM64,
    JA,
    JEQ,
    JMP,
    JNE,
    LDX,
    LOOKUP,
    MOV,
    REGISTERS,
    ST,
    STACK,
    STX,
    XADD,
    Instruction,
    decode,
)

_MOST_VISITS = 200_000
# Helpers' arguments (their numbers: bpf.h): a buffer on the stack and the register with its size; what of it is only
# written has been free to be anything since 4.7 (kernel commit 074f528eed40).
_WRITTEN = {4: (1, 2), 16: (1, 2)}
_READ = {25: (4, 5)}


class Held(NamedTuple):
    """A register: the kinds of kernel/bpf/verifier.c, and the number or the map that goes with one."""

    kind: str
    what: int | str = 0


_UNSET, _UNKNOWN = Held("NOT_INIT"), Held("UNKNOWN_VALUE")
# What is still known of a register once it was on the stack.
_SPILLED = {"PTR_TO_MAP_VALUE", "PTR_TO_MAP_VALUE_OR_NULL", "PTR_TO_STACK", "PTR_TO_CTX", "FRAME_PTR",
            "CONST_PTR_TO_MAP"}


class Paths(NamedTuple):
    """`visited` as "processed N insns" has it; `unwritten`: instruction and helper that got stack nobody wrote."""

    visited: int
    unwritten: tuple[tuple[int, int], ...]


class _State:
    """Registers, and of the stack which bytes hold numbers, which hold registers, and those."""

    __slots__ = ("misc", "registers", "spill", "spilled")

    def __init__(self, registers: list[Held], misc: int, spill: int, spilled: dict[int, Held]) -> None:
        self.registers, self.misc, self.spill, self.spilled = registers, misc, spill, spilled

    def copy(self) -> _State:
        return _State([*self.registers], self.misc, self.spill, {**self.spilled})

    def covers(self, other: _State) -> bool:
        """Whether what was fine with this is fine with the other: `states_equal` of 4.4."""
        for old, new in zip(self.registers, other.registers, strict=True):
            if old != new and old != _UNSET and (old != _UNKNOWN or new == _UNSET):
                return False
        if self.misc & ~other.misc or self.spill & ~other.spill:
            return False
        return all(other.spilled.get(slot) == held for slot, held in self.spilled.items()) and all(
            slot in self.spilled or not (self.misc | self.spill) >> 8 * slot & 1 for slot in other.spilled)


def paths(program: ObjectProgram) -> Paths:
    """Goes the ways of a program without loops, in the order and with the memory those verifiers have."""
    code, maps = decode(program), dict(program.relocations)
    remembered: dict[int, list[_State]] = {at: [] for at in _marks(code)}
    registers = [_UNSET] * REGISTERS
    registers[1], registers[FRAME] = Held("PTR_TO_CTX"), Held("FRAME_PTR")
    pending = [(0, _State(registers, 0, 0, {}))]
    unwritten: dict[tuple[int, int], None] = {}
    visited = 0
    while pending and visited < _MOST_VISITS:
        at, state = pending.pop()
        while at < len(code) and visited < _MOST_VISITS:
            visited += 1
            if (known := remembered.get(at)) is not None:
                if any(old.covers(state) for old in known):
                    break
                known.append(state.copy())
            i = code[at]
            if i.group == JMP and i.operation == EXIT:
                break
            if i.group == JMP and i.operation == CALL:
                if not _is_written(i.immediate, state):
                    unwritten[at, i.immediate] = None
                _call(i.immediate, at, state)
                at += 1
            elif i.group == JMP:
                at, other = _jump(i, at, state)
                if other:
                    pending.append(other)
            else:
                _plain(i, state, maps.get(at))
                at += 1 + (i.code == IMM64)
    return Paths(visited, tuple(unwritten))


def _marks(code: list[Instruction]) -> Iterator[int]:
    """Where states are compared: check_cfg()."""
    for at, i in enumerate(code):
        if i.group == JMP and i.operation in (CALL, JA) and at + 1 < len(code):
            yield at + 1
        elif i.group == JMP and i.operation != EXIT:
            yield at + 1 + i.offset


def _jump(i: Instruction, at: int, state: _State) -> tuple[int, tuple[int, _State] | None]:
    """Where the way goes on, and another one that is gone later: check_cond_jmp_op()."""
    there, held = at + 1 + i.offset, state.registers[i.dst]
    if i.operation == JA:
        return there, None
    equality = i.operation in (JEQ, JNE) and not i.by_register
    if equality and held == Held("CONST_IMM", i.immediate):
        return (there if i.operation == JEQ else at + 1), None
    other = state.copy()
    equal, unequal = (other, state) if i.operation == JEQ else (state, other)
    if equality and held.kind == "PTR_TO_MAP_VALUE_OR_NULL" and i.immediate == 0:
        equal.registers[i.dst] = Held("CONST_IMM", 0)
        unequal.registers[i.dst] = held._replace(kind="PTR_TO_MAP_VALUE")
    elif equality:
        equal.registers[i.dst] = Held("CONST_IMM", i.immediate)
    return at + 1, (there, other)


def _call(helper: int, at: int, state: _State) -> None:
    asked = state.registers[1].what
    state.registers[0] = Held("PTR_TO_MAP_VALUE_OR_NULL", asked) if helper == LOOKUP else _UNKNOWN
    state.registers[1:6] = [_UNSET] * 5


def _is_written(helper: int, state: _State) -> bool:
    buffer, bytes_in = (_WRITTEN.get(helper) or _READ.get(helper) or (0, 0))
    where, length = state.registers[buffer], state.registers[bytes_in]
    if where.kind != "PTR_TO_STACK" or length.kind != "CONST_IMM":
        return True
    start, size = _on_stack(0, where), int(length.what)
    return start is None or size < 0 or not ((1 << min(size, STACK)) - 1) << start & ~state.misc


def _plain(i: Instruction, state: _State, loads: str | None) -> None:
    """What is no jump."""
    registers = state.registers
    if i.code == IMM64:
        registers[i.dst] = Held("CONST_PTR_TO_MAP", loads) if loads else _UNKNOWN
    elif i.group == LDX:
        registers[i.dst] = _loaded(i, state)
    elif i.group in (ST, STX):
        _store(i, state)
    elif i.group in (ALU, ALU64):
        registers[i.dst] = _computed(i, registers)


def _loaded(i: Instruction, state: _State) -> Held:
    if (start := _on_stack(i.offset, state.registers[i.src])) is None or start & 7 or i.size != 8:
        return _UNKNOWN
    return state.spilled.get(start >> 3, _UNKNOWN)


def _store(i: Instruction, state: _State) -> None:
    if (start := _on_stack(i.offset, state.registers[i.dst])) is None or i.code & 0xE0 == XADD:
        return
    size = i.size
    wrote = ((1 << size) - 1) << start
    held = state.registers[i.src] if i.group == STX else _UNKNOWN
    state.spilled.pop(start >> 3, None)
    if size == 8 and held.kind in _SPILLED:
        state.spilled[start >> 3] = held
        state.spill, state.misc = state.spill | wrote, state.misc & ~wrote
    else:
        state.misc, state.spill = state.misc | wrote, state.spill & ~wrote


def _on_stack(offset: int, base: Held) -> int | None:
    """Which of the stack's bytes, from its lowest on."""
    if base.kind not in ("FRAME_PTR", "PTR_TO_STACK"):
        return None
    start = STACK + offset + int(base.what)
    return start if 0 <= start < STACK else None


def _computed(i: Instruction, registers: list[Held]) -> Held:
    if i.operation == MOV:
        if not i.by_register:
            return Held("CONST_IMM", i.immediate)
        return registers[i.src] if i.group == ALU64 else _UNKNOWN
    if i.group == ALU64 and i.operation == ADD and not i.by_register and registers[i.dst].kind == "FRAME_PTR":
        return Held("PTR_TO_STACK", i.immediate)
    return _UNKNOWN
