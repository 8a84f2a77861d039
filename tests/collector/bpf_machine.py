"""Runs compiled BPF programs without a kernel: what they do to their maps, event by event, on sockets made of bytes."""

import itertools
import struct

from kcompat.instructions import ALU, ALU64, CALL, EXIT, IMM64, JA, JMP, JMP32, LD, LDX, ST, STX, decode

M64, M32 = (1 << 64) - 1, (1 << 32) - 1
EFAULT, EEXIST, E2BIG, ENOENT = -14 & M64, -17 & M64, -7 & M64, -2 & M64
NOEXIST = 1
LOOKUP, UPDATE, DELETE = 1, 2, 3
ENDIAN = 0xD0
# Where the kernel's memory begins, and a process's.
_ROOMS = (0xFFFF_8880_0000_0000, 0x7F00_0000_0000)


def signed(number, bits=64):
    return number - (1 << bits) if number >> bits - 1 else number


ARITHMETIC = {
    0x00: lambda a, b, bits: a + b, 0x10: lambda a, b, bits: a - b, 0x20: lambda a, b, bits: a * b,
    0x30: lambda a, b, bits: a // b if b else 0, 0x40: lambda a, b, bits: a | b, 0x50: lambda a, b, bits: a & b,
    0x60: lambda a, b, bits: a << (b & bits - 1), 0x70: lambda a, b, bits: a >> (b & bits - 1),
    0x80: lambda a, b, bits: -a, 0x90: lambda a, b, bits: a % b if b else a, 0xA0: lambda a, b, bits: a ^ b,
    0xB0: lambda a, b, bits: b, 0xC0: lambda a, b, bits: signed(a, bits) >> (b & bits - 1),
}
COMPARISONS = {
    0x10: lambda a, b, bits: a == b, 0x20: lambda a, b, bits: a > b, 0x30: lambda a, b, bits: a >= b,
    0x40: lambda a, b, bits: a & b, 0x50: lambda a, b, bits: a != b,
    0x60: lambda a, b, bits: signed(a, bits) > signed(b, bits),
    0x70: lambda a, b, bits: signed(a, bits) >= signed(b, bits),
    0xA0: lambda a, b, bits: a < b, 0xB0: lambda a, b, bits: a <= b,
    0xC0: lambda a, b, bits: signed(a, bits) < signed(b, bits),
    0xD0: lambda a, b, bits: signed(a, bits) <= signed(b, bits),
}


class Table:
    """A map: `max_entries` of a hash hold, an array's are all there."""

    def __init__(self, spec, machine):
        self.spec, self._machine = spec, machine
        self.values = {}  # key to the address of its value
        self.is_array = spec.kind == 2

    def lookup(self, key):
        if self.is_array and key not in self.values and int.from_bytes(key, "little") < self.spec.max_entries:
            self.values[key] = self._machine.allocate(bytes(self.spec.value_size))
        return self.values.get(key, 0)

    def update(self, key, value, flags=0):
        if self.lookup(key):
            if flags & NOEXIST:
                return EEXIST
            self._machine.write(self.values[key], value)
            return 0
        if len(self.values) >= self.spec.max_entries:
            return E2BIG
        self.values[key] = self._machine.allocate(value)
        return 0

    def delete(self, key):
        return 0 if self.values.pop(key, None) else ENOENT

    def get(self, key):
        at = self.lookup(key)
        return self._machine.read(at, self.spec.value_size) if at else None

    def items(self):
        return [(key, self.get(key)) for key in list(self.values)]


class Machine:
    """One processor; `thread`, `comm` and `now_ns` are those of whatever comes next."""

    def __init__(self, compiled):
        self._programs = {program.name: program for program in compiled.programs}
        self._regions, self._next, self._next_of_user = {}, *(itertools.count(at, 1 << 16) for at in _ROOMS)
        self.maps = {spec.name: Table(spec, self) for spec in compiled.maps}
        self._handles = {name: self.allocate(b"") for name in self.maps}
        self._by_handle = {at: name for name, at in self._handles.items()}
        self.thread, self.comm, self.now_ns, self.jiffies = 100 << 32 | 100, b"client", 1_000_000, 1
        self.told, self.stages = [], {}  # what went to user space; programs by slot
        self.before_helper = None

    def allocate(self, data, *, is_users=False):
        at = next(self._next_of_user if is_users else self._next)
        self._regions[at] = bytearray(data)
        return at

    def read(self, at, size):
        region = self._regions[at & ~0xFFFF]
        begin = at & 0xFFFF
        assert begin + size <= len(region), "reads beyond what is there"
        return bytes(region[begin:begin + size])

    def write(self, at, data):
        region = self._regions[at & ~0xFFFF]
        begin = at & 0xFFFF
        assert begin + len(data) <= len(region), "writes beyond what is there"
        region[begin:begin + len(data)] = data

    def lost(self, reason):
        return int.from_bytes(self.maps["losses"].get(struct.pack("<I", reason)), "little")

    def run(self, name, context):
        """The program of that name on the bytes of its context."""
        registers = [0] * 11
        registers[1], registers[10] = self.allocate(context), self.allocate(bytes(512)) + 512
        program, at = self._programs[name], 0
        code, maps = decode(program), dict(program.relocations)
        while True:
            i = code[at]
            at += 1
            bits = 64 if i.group in (ALU64, JMP) else 32
            mask = (1 << bits) - 1
            other = (registers[i.src] if i.by_register else i.immediate) & mask
            if i.group == LD and i.code == IMM64:
                registers[i.dst] = (self._handles[maps[at - 1]] if at - 1 in maps
                                    else i.immediate & M32 | (code[at].immediate & M32) << 32)
                at += 1
            elif i.group in (ALU, ALU64) and i.operation == ENDIAN:
                size = i.immediate // 8
                number = (registers[i.dst] & (1 << i.immediate) - 1).to_bytes(size, "little")
                registers[i.dst] = int.from_bytes(number, "big" if i.by_register else "little")
            elif i.group in (ALU, ALU64):
                registers[i.dst] = ARITHMETIC[i.operation](registers[i.dst] & mask, other, bits) & mask
            elif i.group == LDX:
                registers[i.dst] = int.from_bytes(self.read(registers[i.src] + i.offset, i.size), "little")
            elif i.group == STX and i.code & 0xE0 == 0xC0:
                place = registers[i.dst] + i.offset
                before = int.from_bytes(self.read(place, i.size), "little")
                assert i.immediate in (0, 1), "an atomic operation that is no addition"
                self.write(place, (before + registers[i.src] & (1 << 8 * i.size) - 1).to_bytes(i.size, "little"))
            elif i.group in (ST, STX):
                number = registers[i.src] if i.group == STX else i.immediate
                self.write(registers[i.dst] + i.offset, (number & (1 << 8 * i.size) - 1).to_bytes(i.size, "little"))
            elif i.operation == EXIT:
                return registers[0]
            elif i.group == JMP and i.operation == CALL:
                if i.immediate == 12 and (follower := self.stages.get(registers[3])):
                    program, at = self._programs[follower], 0
                    code, maps = decode(program), dict(program.relocations)
                    continue
                if self.before_helper:
                    self.before_helper(i.immediate, self._by_handle.get(registers[1]), registers)
                registers[0] = self._help(i.immediate, *registers[1:6])
            elif i.operation == JA:
                at += i.offset
            else:
                assert i.group in (JMP, JMP32)
                if COMPARISONS[i.operation](registers[i.dst] & mask, other, bits):
                    at += i.offset

    def _help(self, number, a, b, c, d, e):
        if number in (LOOKUP, UPDATE, DELETE):
            table = self.maps[self._by_handle[a]]
            key = self.read(b, table.spec.key_size)
            if number == UPDATE:
                return table.update(key, self.read(c, table.spec.value_size), d)
            return table.lookup(key) if number == LOOKUP else table.delete(key)
        if number in (4, 112, 113):
            region = self._regions.get(c & ~0xFFFF, b"")
            if (c & 0xFFFF) + (b & M32) > len(region):
                self.write(a, bytes(b & M32))
                return EFAULT
            self.write(a, self.read(c, b & M32))
            return 0
        if number == 16:
            self.write(a, self.comm.ljust(b & M32, b"\0"))
            return 0
        if number == 25:
            self.told.append(self.read(d, e & M32))
            return 0
        return {5: self.now_ns, 8: 0, 12: ENOENT, 14: self.thread, 118: self.jiffies}[number]
