"""Walks every path of a BPF program as an old verifier does, and says where one would stop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
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
    JMP32,
    JNE,
    LDX,
    LOOKUP,
    MOV,
    REGISTERS,
    ST,
    STX,
    SUB,
    Instruction,
    decode,
    deepest,
    forms_of,
    helpers_of,
    malformed,
)


class Kind(Enum):
    """What a register or a stack slot holds, as far as a verifier cares."""

    UNSET = "nothing"
    SCALAR = "a number"
    ZERO = "zero"
    CONTEXT = "the context"
    FRAME = "a stack address"
    SOMEWHERE = "a stack address that a number was added to"
    MAP = "a map"
    MAYBE = "a map value or NULL"
    VALUE = "a map value"
    MOVED = "a map value's address that was added to"


class Held(NamedTuple):
    """`offset`: of a FRAME, from the frame pointer; of a MAYBE, the number of the lookup that gave it."""

    kind: Kind
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What a verifier lets pass; see `dialect` for who was how strict."""

    moved_values: bool
    """A map value's address may have a constant added to it and then be used."""
    copies_of_lookups: bool
    """Testing one copy of a lookup's answer for NULL tells it of the others."""
    memory_in_values: bool
    """Helpers may write to and read from map values, not only the stack."""
    keys_in_values: bool
    """Map keys and new values handed to helpers may stand in map values."""
    places_on_stack: bool
    """The stack may be read at a place that is only known within bounds."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk found: `faults` by instruction, the deepest stack byte, the helpers called, what it went through."""

    faults: tuple[tuple[int, str], ...]
    stack: int
    helpers: frozenset[int]
    visited: int
    loops: bool
    calls_functions: bool
    short_jumps: bool
    atomics: bool


# The arguments of helpers (their numbers: bpf.h) that point to memory: keys and values of maps, and plain buffers.
_KEYS = {1: (2,), 2: (2, 3), 3: (2,)}
_BUFFERS = {4: (1,), 16: (1,), 25: (4,), 45: (1,), 112: (1,), 113: (1,), 114: (1,), 115: (1,)}
_MOST_VISITS = 1_000_000  # the limit of 5.2 and later; older ones stopped far earlier

State = tuple[tuple[Held, ...], frozenset[tuple[int, Held]]]
_UNSET, _SCALAR = Held(Kind.UNSET), Held(Kind.SCALAR)


def walk(program: ObjectProgram, rules: Rules) -> Walk:
    """Every path from the first instruction, with what each register holds on it. Loops end the walk at once."""
    code = decode(program)
    maps = {at for at, _ in program.relocations}
    faults = dict(malformed(code))
    if faults:
        return Walk(tuple(faults.items()), 0, frozenset(), 0, False, False, False, False)
    forms = forms_of(code)
    if forms["loops"]:
        return Walk((), deepest(code), helpers_of(code), 0, **forms)
    registers = [_UNSET] * REGISTERS
    registers[1], registers[FRAME] = Held(Kind.CONTEXT), Held(Kind.FRAME)
    pending: list[tuple[int, State]] = [(0, (tuple(registers), frozenset()))]
    seen: set[tuple[int, State]] = set()
    visited = 0
    while pending and visited < _MOST_VISITS:
        at, state = pending.pop()
        if (at, state) in seen or at in faults:
            continue
        seen.add((at, state))
        visited += 1
        step = _Step(code[at], at, state, at in maps, rules)
        if fault := step.fault():
            faults[at] = fault
            continue
        pending.extend(step.successors())
    return Walk(tuple(sorted(faults.items())), deepest(code), helpers_of(code), visited, **forms)


class _Step:
    """One instruction in one state."""

    def __init__(self, instruction: Instruction, at: int, state: State, loads_map: bool, rules: Rules) -> None:
        self.i, self.at, self.rules, self.loads_map = instruction, at, rules, loads_map
        self.registers, self.slots = list(state[0]), dict(state[1])

    def fault(self) -> str | None:
        """Why a verifier refuses this instruction here."""
        i = self.i
        if i.group == LDX:
            if self.registers[i.src].kind is Kind.SOMEWHERE and self.rules.places_on_stack:
                return None
            return self._reaches(i.src, "reads from")
        if i.group in (ST, STX):
            return self._reaches(i.dst, "writes to")
        if i.group == JMP and i.operation == CALL:
            return self._arguments()
        return None

    def _reaches(self, register: int, does: str) -> str | None:
        kind = self.registers[register].kind
        if kind in (Kind.CONTEXT, Kind.FRAME, Kind.VALUE) or (kind is Kind.MOVED and self.rules.moved_values):
            return None
        return f"{does} r{register}, which holds {kind.value}"

    def _arguments(self) -> str | None:
        helper = self.i.immediate
        told = ((_KEYS, self.rules.keys_in_values, "a key or value"),
                (_BUFFERS, self.rules.memory_in_values, "a buffer"))
        for arguments, in_values, what in told:
            for register in arguments.get(helper, ()):
                kind = self.registers[register].kind
                if kind is not Kind.FRAME and not (in_values and kind in (Kind.VALUE, Kind.MOVED)):
                    return f"hands helper {helper} {what} in {kind.value}, not on the stack"
        return None

    def successors(self) -> Iterator[tuple[int, State]]:
        i, after = self.i, self.at + 1
        if i.group in (JMP, JMP32) and i.operation == EXIT:
            return
        if i.group in (JMP, JMP32) and i.operation == JA:
            yield self.at + 1 + i.offset, self._state()
        elif self._decided():
            # A lookup that failed on this path, compared with NULL once more.
            yield self.at + 1 + (i.offset if i.operation == JEQ else 0), self._state()
        elif i.group in (JMP, JMP32) and i.operation != CALL:
            yield self.at + 1 + i.offset, self._after_test(i.operation == JEQ)
            yield after, self._after_test(i.operation == JNE)
        else:
            self._apply()
            yield after + (i.code == IMM64), self._state()

    def _decided(self) -> bool:
        i = self.i
        return (i.group == JMP and i.operation in (JEQ, JNE) and not i.by_register and i.immediate == 0
                and self.registers[i.dst].kind is Kind.ZERO)

    def _after_test(self, is_null: bool) -> State:
        """A lookup's answer compared with 0 is NULL on one way and a map value on the other."""
        held = self.registers[self.i.dst]
        plain = self.i.operation in (JEQ, JNE) and not self.i.by_register and self.i.immediate == 0
        if held.kind is not Kind.MAYBE or not plain:
            return self._state()
        now = Held(Kind.ZERO) if is_null else Held(Kind.VALUE)
        if not self.rules.copies_of_lookups:
            registers = [*self.registers]
            registers[self.i.dst] = now
            return tuple(registers), frozenset(self.slots.items())
        return (tuple(now if other == held else other for other in self.registers),
                frozenset((slot, now if other == held else other) for slot, other in self.slots.items()))

    def _apply(self) -> None:
        i = self.i
        if i.code == IMM64:
            self.registers[i.dst] = Held(Kind.MAP) if self.loads_map else _SCALAR
        elif i.group == LDX:
            self.registers[i.dst] = self._loaded()
        elif i.group in (ST, STX):
            self._store()
        elif i.group in (ALU, ALU64):
            self.registers[i.dst] = self._computed()
        elif i.operation == CALL:
            self.registers[1:6] = [_UNSET] * 5
            self.registers[0] = Held(Kind.MAYBE, self.at) if i.immediate == LOOKUP else _SCALAR

    def _loaded(self) -> Held:
        base = self.registers[self.i.src]
        if base.kind is Kind.FRAME and self.i.size == 8:
            return self.slots.get(base.offset + self.i.offset, _SCALAR)
        return _SCALAR

    def _store(self) -> None:
        base = self.registers[self.i.dst]
        if base.kind is not Kind.FRAME:
            return
        start, size = base.offset + self.i.offset, self.i.size
        for slot in [s for s in self.slots if s < start + size and start < s + 8]:
            del self.slots[slot]
        held = self.registers[self.i.src] if self.i.group == STX else _SCALAR
        if size == 8 and held.kind not in (Kind.SCALAR, Kind.ZERO, Kind.UNSET):
            self.slots[start] = held

    def _computed(self) -> Held:
        i, dst = self.i, self.registers[self.i.dst]
        if i.operation == MOV:
            if i.by_register:
                return self.registers[i.src] if i.group == ALU64 else _SCALAR
            return _SCALAR if i.immediate else Held(Kind.ZERO)
        if i.group == ALU64 and i.operation in (ADD, SUB) and not i.by_register:
            moved = i.immediate if i.operation == ADD else -i.immediate
            if dst.kind is Kind.FRAME:
                return Held(Kind.FRAME, dst.offset + moved)
            if dst.kind in (Kind.VALUE, Kind.MOVED):
                return Held(Kind.MOVED)
            if dst.kind is Kind.SOMEWHERE:
                return dst
        if i.group == ALU64 and i.operation == ADD and i.by_register and {dst.kind, self.registers[i.src].kind} in (
                {Kind.FRAME, Kind.SCALAR}, {Kind.SOMEWHERE, Kind.SCALAR}):
            return Held(Kind.SOMEWHERE)
        return _SCALAR

    def _state(self) -> State:
        return tuple(self.registers), frozenset(self.slots.items())
