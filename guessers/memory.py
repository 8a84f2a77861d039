"""Kernel memory as a Python object: read any address, see the pointers hooks caught for our own thread."""

from __future__ import annotations

import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

from guessers.hooks import BACKENDS, HOOKS, Backend, Hook
from guessers.namespace import stop_if_told
from kcompat.bpf import Object, compile_cached
from kcompat.errors import KcompatError, Missing, Unsupported
from kcompat.load import Loaded

CALLS, COPIES, COPY_SIZE, CHUNKS, CHUNK_SIZE = 64, 128, 256, 16, 256
MESSAGES, MESSAGE_SIZE = 16, 128
_TRIGGER_SYSCALL = {"x86_64": 146, "aarch64": 125}  # sched_get_priority_max


class ReadFault(KcompatError):
    """An address could not be read; `code` is the kernel's errno (14, EFAULT, or 1, EPERM, under lockdown)."""

    def __init__(self, address: int, code: int) -> None:
        super().__init__(f"kernel memory at {address:#x} cannot be read: {os.strerror(code)}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Call:
    """A hook that fired for us with its first arguments."""

    hook: Hook
    args: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """An object a hook copied in passing, and where it lay."""

    hook: Hook
    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A ``struct msghdr`` at `address` on our stack, and what the pointer `follow` chose led to."""

    hook: Hook
    address: int
    data: bytes
    lead: bytes | None


@dataclass(frozen=True, slots=True)
class Compiled:
    object: Object
    cached: bool
    version_code: int


def source(machine: str | None = None) -> str:
    """The C of the guess: offset-free, the same on every kernel of a machine type, this one or another."""
    machine = machine or platform.machine()
    if machine not in _TRIGGER_SYSCALL:
        raise Unsupported(f"the guess knows no trigger system call for {machine}")
    body = (Path(__file__).parent / "memory.bpf.c").read_text()
    head = f"#define TRIGGER_SYSCALL {_TRIGGER_SYSCALL[machine]}\n"
    return head + body + "\n" + "".join(hook.instance() for hook in HOOKS)


def compiled(version_code: int, *, use_cache: bool = True) -> Compiled:
    made, cached = compile_cached(source(), use_cache=use_cache)
    return Compiled(made, cached, version_code)


class KernelMemory:
    """The loaded hooks and the reader. Acts for the thread that calls `adopt` only. Use as a context manager."""

    def __init__(self, program: Compiled, backends: tuple[Backend, ...] = BACKENDS) -> None:
        self._loaded = Loaded(program.object, program.version_code)
        self.missing: dict[str, str] = {}
        self.attached: dict[Hook, tuple[str, ...]] = {}
        try:
            for wanted in dict.fromkeys(h.object for h in HOOKS):
                self._attach(wanted, backends)
            if not self.has("trigger"):
                raise Unsupported(f"the kernel lets no program of ours read its memory: {self.missing['trigger']}")
        except BaseException:
            self.close()
            raise

    def _attach(self, wanted: str, backends: tuple[Backend, ...]) -> None:
        """The hooks of the first backend that has any for this object."""
        reasons = []
        for backend in backends:
            for hook in (h for h in HOOKS if h.object == wanted and h.backend == backend):
                hooked = []
                for symbol in hook.symbols:
                    try:
                        self._loaded.attach(hook.program, symbol)
                    except Missing as error:
                        reasons.append(str(error))
                        break  # what is missing is missing for every symbol
                    except OSError as error:
                        reasons.append(f"{backend} {symbol}: {error.strerror}")
                    else:
                        hooked.append(symbol)
                        if not hook.every:
                            break
                if hooked:
                    self.attached[hook] = tuple(hooked)
            if self.has(wanted):
                return
        self.missing[wanted] = "; ".join(reasons) or f"no {' or '.join(backends)} hook gives it"

    def has(self, wanted: str) -> bool:
        return any(hook.object == wanted for hook in self.attached)

    def hook(self, name: str) -> Hook | None:
        """The attached hook of that name."""
        return next((hook for hook in self.attached if hook.name == name), None)

    def adopt(self, nonce: bytes) -> None:
        """From now on hooks and reader act for threads named `nonce` (at most 15 bytes)."""
        self._loaded.maps["nonce"].set(_u32(0), nonce.ljust(16, b"\0"))

    def clear(self) -> None:
        """Forgets what hooks caught. A place to stop at: every experiment begins with it."""
        stop_if_told()
        for slot in (0, 1, 2):
            self._loaded.maps["cursors"].set(_u32(slot), bytes(8))

    def calls(self) -> list[Call]:
        """What pointer hooks caught since `clear`, oldest first."""
        raw = self._ring("calls", 0, CALLS)
        return [Call(HOOKS[hook], tuple(args)) for hook, *args in (struct.unpack("<Q5Q", r) for r in raw)]

    def copies(self) -> list[Copy]:
        """What copying hooks caught since `clear`, oldest first; a copy that faulted is left out."""
        raw = [(struct.unpack_from("<QQq", r), r[24:]) for r in self._ring("copies", 1, COPIES)]
        return [Copy(HOOKS[hook], address, data[:HOOKS[hook].size])
                for (hook, address, status), data in raw if status == 0]

    def follow(self, offset: int | None) -> None:
        """From now on messages come with what the pointer at this offset of theirs leads to, if it is on the stack."""
        self._loaded.maps["followed"].set(_u32(0), struct.pack("<Q", 0 if offset is None else offset + 1))

    def messages(self) -> list[Message]:
        """The messages sent since `clear`, oldest first; one that could not be read is left out."""
        raw = [(struct.unpack_from("<QQqq", r), r[32:]) for r in self._ring("messages", 2, MESSAGES)]
        return [Message(HOOKS[hook], address, data[:MESSAGE_SIZE], None if lead_status else data[MESSAGE_SIZE:])
                for (hook, address, status, lead_status), data in raw if status == 0]

    def hits(self) -> dict[Hook, tuple[int, int]]:
        """Per attached hook: how often it fired for anybody, and for us."""
        table = self._loaded.maps["hits"]
        return {hook: struct.unpack("<QQ", table.get(_u32(hook.number)) or bytes(16)) for hook in self.attached}

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of kernel memory at `address`; as many whole chunks as can be read, at least one.

        Raises ReadFault when not even the first chunk can be read. A window may end early: what lies behind an
        object may not be mapped.
        """
        parts: list[bytes] = []
        while len(parts) * CHUNK_SIZE < size:
            count = min(CHUNKS, -(-size // CHUNK_SIZE) - len(parts))
            start = address + len(parts) * CHUNK_SIZE
            for status, data in self._chunks(start, count):
                if status != 0:
                    if not parts:
                        raise ReadFault(address, -status)
                    return b"".join(parts)
                parts.append(data)
        return b"".join(parts)[:size]

    def _chunks(self, address: int, count: int) -> list[tuple[int, bytes]]:
        stop_if_told()
        wanted, chunks = self._loaded.maps["wanted"], self._loaded.maps["chunks"]
        never = struct.pack("<q", -4096) + bytes(CHUNK_SIZE)
        for slot in range(count):
            wanted.set(_u32(slot), struct.pack("<Q", address + slot * CHUNK_SIZE))
            chunks.set(_u32(slot), never)
        if count < CHUNKS:
            wanted.set(_u32(count), bytes(8))
        os.sched_get_priority_max(os.SCHED_OTHER)
        answers = [chunks.get(_u32(slot)) or never for slot in range(count)]
        if answers[0][:8] == never[:8]:
            raise Unsupported("the reader's trigger did not fire: its hook is attached but never reached")
        return [(struct.unpack_from("<q", a)[0], a[8:]) for a in answers]

    def _ring(self, name: str, cursor: int, size: int) -> list[bytes]:
        count = struct.unpack("<Q", self._loaded.maps["cursors"].get(_u32(cursor)) or bytes(8))[0]
        table = self._loaded.maps[name]
        return [table.get(_u32(i % size)) or b"" for i in range(max(0, count - size), count)]

    def close(self) -> None:
        self._loaded.close()

    def __enter__(self) -> KernelMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")
