"""Where a uprobe costs least: at an instruction that the kernel emulates. Of any other it steps through a copy.

That step is a trap of its own, and with it a hit takes twice to fifteen times as long. A compiler often puts an
instruction of the one kind right behind the beginning of a function, or a function whose beginning is one right behind
the one that others may call. x86-64 alone: what is known of other machines is that nothing is known.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, TypeAlias

MACHINE = 62  # EM_X86_64
Instruction: TypeAlias = Any  # capstone.CsInsn; it has no types

# No compiler known puts more before what it has to save.
_NEAR = 8
_PARTS = {"rdi": "edi di dil", "rsi": "esi si sil", "rdx": "edx dx dl dh", "rcx": "ecx cx cl ch", "r8": "r8d r8w r8b",
          "rax": "eax ax al ah", "rsp": "esp sp spl"}
_WIDE = {part: wide for wide, parts in _PARTS.items() for part in parts.split()}
_ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8")


class Inner(NamedTuple):
    """The function that does the work of another, and which argument of it (from 1) says where to put the count."""

    at: int
    count_argument: int


def nearest(code: bytes, base: int, arguments: Sequence[int]) -> int | None:
    """Where, from the beginning of `code` on, an instruction is emulated while these arguments (from 1) and the return
    address still stand where the caller has put them; None if nowhere near.

    Everybody who enters at `base` comes by there, and nobody else does who branches within `code`.
    """
    kept = {"rsp", *(_ARGUMENTS[number - 1] for number in arguments)}
    targets: set[int] = set()
    for number, instruction in enumerate(_disassembled(code, base)):
        if number == 1:
            targets = _targets(_disassembled(code, base))
        if instruction.address in targets and number:
            return None
        if is_emulated(bytes(instruction.bytes)):
            return int(instruction.address)
        if number == _NEAR or _is_branch(instruction) or kept & _written(instruction):
            return None
    return None


def prepare() -> None:
    """Imports what the first question would, 40 ms: for a thread beside one that waits for the kernel."""
    if platform.machine() == "x86_64":
        with suppress(Exception):  # whoever asks will be told
            _disassembler()


def is_emulated(instruction: bytes) -> bool:
    """Relative branches and calls, NOP (3.16 on, kernel commit 8e89c0be171b) and PUSH of a register (4.16 on, commit
    e7ed9d9bd037); none that has a prefix but the one that PUSH has for a register of the upper half.
    """
    first, second = instruction[0], instruction[1] if len(instruction) > 1 else 0
    return (0x50 <= first <= 0x57 or (first == 0x41 and 0x50 <= second <= 0x57) or first in (0x90, 0xE8, 0xE9, 0xEB)
            or 0x70 <= first <= 0x7F or (first == 0x0F and 0x80 <= second <= 0x8F))


def inner(code: bytes, base: int, is_elsewhere: Callable[[int], bool]) -> Inner | None:
    """What the whole function `code` only wraps: ``int f(a, b, n, ...)`` that has another put a count into its frame.

    That is shown by all of this: its way from the beginning leads to one call within the file, with the first two
    arguments as they came and with a place in its frame as the fourth or fifth; it loads what it returns from that
    place; and whoever comes by none but calls to elsewhere (`is_elsewhere`) returns 0 or less. None if any is missing.
    """
    instructions = list(_disassembled(code, base))
    if sum(one.size for one in instructions) != len(code):
        return None
    leaving = _leaving(instructions, base, base + len(code))
    if leaving is None or len(own := {at for at in leaving if not is_elsewhere(at)}) != 1:
        return None
    calls = [n for n, one in enumerate(instructions) if _target(one) in own]
    if len(calls) != 1 or instructions[calls[0]].mnemonic != "call":
        return None
    number, = calls
    way, after = instructions[:number], instructions[number + 1:]
    if any(_is_branch(one) and not _is_conditional(one) for one in way) or _targets(instructions) & {
            one.address for one in instructions[1:number + 1]}:
        return None
    places = {name: place for name in ("rcx", "r8") if (place := _frame_place(way, name)) is not None}
    if len(places) != 1 or any({"rdi", "rsi"} & _written(one) for one in way):
        return None
    (name, place), = places.items()
    if not any(_loads(one, place) for one in after) or not _fails_elsewhere(instructions, own, base):
        return None
    return Inner(own.pop(), _ARGUMENTS.index(name) + 1)


def leaves(code: bytes, base: int) -> set[int] | None:
    """Where the calls and branches of the whole function lead that leave it; None where one of them does not say."""
    return _leaving(_disassembled(code, base), base, base + len(code))


def _leaving(instructions: Iterable[Instruction], base: int, end: int) -> set[int] | None:
    found = set()
    for one in instructions:
        if _is_branch(one) and one.mnemonic != "ret":
            if (target := _target(one)) is None:
                return None
            if not base <= target < end:
                found.add(target)
    return found


def _fails_elsewhere(instructions: Sequence[Instruction], own: set[int], base: int) -> bool:
    """Whether after each call that leads elsewhere 0 or less is returned, unless another call or nothing follows."""
    end = base + sum(one.size for one in instructions)
    for number, one in enumerate(instructions):
        target = _target(one)
        if target is None or base <= target < end or target in own:
            continue
        if one.mnemonic != "call":
            return False
        for following in instructions[number + 1:]:
            if following.mnemonic in ("nop", "call"):
                continue
            if _is_branch(following):
                return False
            if _sets_no_more_than_0(following):
                break
    return True


def _sets_no_more_than_0(instruction: Instruction) -> bool:
    if "rax" not in _written(instruction):
        return False
    operands = [instruction.reg_name(o.reg) if o.type == 1 else o.imm for o in instruction.operands]
    if instruction.mnemonic == "mov" and operands[0] == "eax" and isinstance(operands[1], int):
        return operands[1] == 0 or bool(operands[1] & 0x8000_0000)
    return (instruction.mnemonic == "xor" and operands == ["eax", "eax"]) or (
        instruction.mnemonic == "or" and operands[0] == "eax" and operands[1] in (-1, 0xFFFF_FFFF))


def _frame_place(way: Sequence[Instruction], name: str) -> int | None:
    """How far from the stack pointer the place is that the register points to at the end of the way, if it does."""
    last = next((one for one in reversed(way) if name in _written(one)), None)
    if last is None or len(last.operands) != 2 or last.reg_name(last.operands[0].reg) != name:
        return None
    source = last.operands[1]
    if last.mnemonic == "mov" and source.type == 1 and last.reg_name(source.reg) == "rsp":
        return 0
    if last.mnemonic == "lea" and last.reg_name(source.mem.base) == "rsp" and not source.mem.index:
        return int(source.mem.disp)
    return None


def _loads(instruction: Instruction, place: int) -> bool:
    """Whether it may put what stands at that place of the frame into what is returned."""
    if len(instruction.operands) != 2 or "rax" not in _written(instruction):
        return False
    source = instruction.operands[1]
    return bool(source.type == 3 and instruction.reg_name(source.mem.base) == "rsp" and not source.mem.index
                and source.mem.disp == place)


def _written(instruction: Instruction) -> set[str]:
    """The registers it changes, by their widest names."""
    names = (instruction.reg_name(number) or "" for number in instruction.regs_access()[1])
    return {_WIDE.get(name, name) for name in names}


def _is_branch(instruction: Instruction) -> bool:
    """Jump, call, return or interrupt: CS_GRP_JUMP to CS_GRP_IRET."""
    return any(1 <= group <= 5 for group in instruction.groups)


def _is_conditional(instruction: Instruction) -> bool:
    return bool(instruction.mnemonic.startswith("j") and instruction.mnemonic != "jmp")


def _target(instruction: Instruction) -> int | None:
    """Where a branch or call leads, if it says."""
    if not _is_branch(instruction) or not instruction.operands or instruction.operands[0].type != 2:
        return None
    return int(instruction.operands[0].imm)


def _targets(instructions: Iterable[Instruction]) -> set[int]:
    return {target for one in instructions if (target := _target(one)) is not None}


@cache
def _disassembler() -> Any:
    # It takes memory, which whoever looks into no TLS is spared.
    import capstone

    made = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    made.detail = True
    return made


def _disassembled(code: bytes, base: int) -> Iterator[Instruction]:
    found: Iterator[Instruction] = _disassembler().disasm(code, base)
    return found
