"""Loads a compiled object into the kernel: maps, the programs asked for, and their hooks, freed together."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from types import TracebackType

from kcompat import attach
from kcompat.attach import Attachment
from kcompat.bpf import Object, ObjectProgram
from kcompat.errors import KcompatError, Missing, Unsupported
from kcompat.hook_status import HookState, HookStatus
from kcompat.maps import Map
from kcompat.privileges import missing_for_bpf
from kcompat.sysbpf import ProgramRefused, ProgType, prog_load, raise_memlock, run_stats

# A program's name says where it goes: <kind>__<hook>, with a unique suffix after a second "__" if one hook has two.
KINDS = {
    "kprobe": ProgType.KPROBE,
    "kretprobe": ProgType.KPROBE,
    "uprobe": ProgType.KPROBE,
    "uretprobe": ProgType.KPROBE,
    "rawtp": ProgType.RAW_TRACEPOINT,
    "tp": ProgType.TRACEPOINT,
    "cgroup": ProgType.CGROUP_SOCK_ADDR,
}
# Of each program so many hooks it could not be put at are remembered: files of processes are without end.
_MOST_FAILURES = 16


class Loaded:
    """A live object: `maps` by name; `attach` loads a program and hooks it. Use it as a context manager."""

    def __init__(self, compiled: Object, version_code: int) -> None:
        self._object = compiled
        self._version_code = version_code
        self._programs: dict[str, int] = {}
        self._outcomes: dict[tuple[str, str], tuple[HookStatus, Attachment | None]] = {}
        self.attachments: list[Attachment] = []
        self.maps: dict[str, Map] = {}
        raise_memlock()
        try:
            for spec in compiled.maps:
                self.maps[spec.name] = Map(spec)
        except OSError as error:
            self.close()
            raise _explained(error, f"map {spec.name}") from error

    def has(self, name: str) -> bool:
        return any(program.name == name for program in self._object.programs)

    def load(self, name: str) -> int:
        """The descriptor of a program, loaded on first use. Raises Missing, Unsupported or KcompatError."""
        if name not in self._programs:
            program = next((p for p in self._object.programs if p.name == name), None)
            if program is None:
                raise KcompatError(f"the object has no program {name}")
            prefix, _, hook = name.partition("__")
            try:
                self._programs[name] = prog_load(KINDS[prefix], self._linked(program), self._object.license,
                                                 self._version_code, hook,
                                                 attach.CGROUP_HOOKS[hook] if prefix == "cgroup" else 0)
            except ProgramRefused as error:
                words = [line for line in error.log.splitlines() if line.strip() and not line.startswith("processed")]
                raise KcompatError(f"the kernel refused program {name}: {error.strerror}: "
                                   f"{words[-1] if words else 'the verifier said nothing'}") from error
            except OSError as error:
                raise _explained(error, f"program {name}") from error
        return self._programs[name]

    def attach(self, name: str, hook: str, file: int | None = None) -> Attachment:
        """Hooks program `name`: `hook` is a function, a raw tracepoint, ``category:name`` of a tracepoint,
        ``path:0xoffset`` in a file that processes run, or what all cgroups do.

        `file` is a descriptor of the file where that path may lead elsewhere by now. Raises OSError when the hook is
        not there, so that a caller can try the next one.
        """
        for key in [key for key, (_, attached) in self._outcomes.items() if _let_go(attached)]:
            del self._outcomes[key]
        try:
            attached = self._attach(name, hook, file)
        except (KcompatError, OSError) as error:
            refused = (not isinstance(error, Missing) if isinstance(error, KcompatError)
                       else error.errno in (errno.EPERM, errno.EACCES))
            reason = str(error) if isinstance(error, KcompatError) else str(error.strerror)
            state = HookState.REFUSED if refused else HookState.MISSING
            self._outcomes.pop((name, hook), None)
            self._outcomes[name, hook] = HookStatus(name, hook, state, reason), None
            self._forget_failures(name)
            raise
        self._outcomes[name, hook] = HookStatus(name, hook, HookState.ATTACHED), attached
        self.attachments.append(attached)
        return attached

    def _forget_failures(self, name: str) -> None:
        """But of the last ones."""
        failed = [key for key, (status, _) in self._outcomes.items()
                  if status.program == name and status.state in (HookState.MISSING, HookState.REFUSED)]
        for key in failed[:-_MOST_FAILURES]:
            del self._outcomes[key]

    @property
    def hooks(self) -> list[HookStatus]:
        """What became of every program at every hook it was tried at, but of hooks let go one by one, and of failures
        the last ones of each program.
        """
        return [status for status, attached in list(self._outcomes.values()) if not _let_go(attached)]

    @property
    def map_bytes(self) -> int | None:
        """Kernel memory of all its maps; None where the kernel does not tell of each."""
        sizes = [made.memory_bytes for made in self.maps.values()]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def costs(self) -> list[tuple[str, int, int]]:
        """Each loaded program, the nanoseconds it has run, and how often."""
        return [(name, stats.ns, stats.runs) for name, fd in list(self._programs.items()) for stats in (run_stats(fd),)]

    def left_out(self, name: str) -> int | None:
        """Events that the kernel kept from a program, as far as it counts them; None for one that is not loaded."""
        return run_stats(self._programs[name]).left_out if name in self._programs else None

    def _attach(self, name: str, hook: str, file: int | None) -> Attachment:
        program = self.load(name)
        kind = name.partition("__")[0]
        if kind == "rawtp":
            return attach.raw_tracepoint(program, hook)
        if kind == "tp":
            return attach.tracepoint(program, *hook.split(":", 1))
        if kind in ("uprobe", "uretprobe"):
            path, _, offset = hook.rpartition(":")
            return attach.uprobe(program, path, int(offset, 16), at_return=kind == "uretprobe", file=file)
        if kind == "cgroup":
            return attach.cgroup(program, hook)
        return attach.kprobe(program, hook, at_return=kind == "kretprobe")

    def link(self, table: str, names: Iterable[str]) -> None:
        """Fills a program array: where the tail calls of its slots lead. Raises what `load` raises."""
        for slot, name in enumerate(names):
            self.maps[table].set(struct.pack("=I", slot), struct.pack("=I", self.load(name)))

    def attach_first(self, name: str, hooks: Iterable[str]) -> str | None:
        """Hooks the program to the first of several alternative hooks this kernel has; None when it has none."""
        for hook in hooks:
            try:
                self.attach(name, hook)
            except OSError:
                continue
            return hook
        return None

    def detach(self) -> None:
        """Takes every hook away; maps and programs stay."""
        self._outcomes = {key: (status._replace(state=HookState.AVAILABLE) if attached else status, None)
                          for key, (status, attached) in self._outcomes.items()}
        while self.attachments:
            self.attachments.pop().close()

    def close(self) -> None:
        self.detach()
        while self._programs:
            os.close(self._programs.popitem()[1])
        for made in self.maps.values():
            made.close()

    def _linked(self, program: ObjectProgram) -> bytes:
        code = bytearray(program.instructions)
        for at, name in program.relocations:
            struct.pack_into("<i", code, at * 8 + 4, self.maps[name].fd)
        return bytes(code)

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _let_go(attached: Attachment | None) -> bool:
    return attached is not None and not attached.is_attached


def _explained(error: OSError, what: str) -> KcompatError:
    """What a refusal of bpf(2) means to a user."""
    if error.errno == errno.ENOSYS:
        return Unsupported("this kernel has no bpf(2): it was built without CONFIG_BPF_SYSCALL")
    if error.errno == errno.EPERM and os.geteuid() != 0:
        return Missing("loading BPF programs needs root (or CAP_BPF and CAP_PERFMON): run it with sudo")
    if error.errno == errno.EPERM:
        if missing := missing_for_bpf():
            return Unsupported(f"the kernel forbids BPF here ({what}: {error.strerror}): {missing}")
        return Unsupported(f"the kernel forbids BPF here ({what}: {error.strerror}): lockdown, a container without "
                           "CAP_SYS_ADMIN, or a seccomp profile; see `kcompat info`")
    return KcompatError(f"{what}: {error.strerror}")
