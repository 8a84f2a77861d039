"""What BPF each old kernel takes, and whether a compiled object is within it: no kernel of that age at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kcompat.bpf import Object, ObjectProgram
from kcompat.dialect_paths import Paths, paths
from kcompat.dialect_walk import Rules, Walk, walk
from kcompat.errors import KcompatError
from kcompat.instructions import STACK
from kcompat.load import KINDS
from kcompat.sysbpf import MapType, ProgType

Release = tuple[int, int]

# First release with it, and the kernel commit: the one place that knows when BPF learnt what.
_PROGRAMS: dict[ProgType, tuple[Release, str]] = {
    ProgType.SOCKET_FILTER: ((3, 19), "ddd872bc3098"),
    ProgType.KPROBE: ((4, 1), "2541517c32be"),
    ProgType.TRACEPOINT: ((4, 7), "98b5c2c65c29"),
    ProgType.RAW_TRACEPOINT: ((4, 17), "c4f6699dfcb8"),
    ProgType.CGROUP_SOCK_ADDR: ((4, 17), "4fbac77d2d09"),
}
_MAPS: dict[int, tuple[str, Release, str]] = {
    MapType.HASH: ("hashes", (3, 19), "0f8e4bd8a1fc"),
    MapType.ARRAY: ("arrays", (3, 19), "28fbcfa08d8e"),
    MapType.PROG_ARRAY: ("program arrays", (4, 2), "04fd61ab36ec"),
    MapType.PERF_EVENT_ARRAY: ("perf event arrays", (4, 3), "ea317b267e9d"),
    MapType.PERCPU_HASH: ("per-CPU hashes", (4, 6), "824bd0ce6c7c"),
    MapType.PERCPU_ARRAY: ("per-CPU arrays", (4, 6), "a10423b87a7e"),
    MapType.LRU_HASH: ("LRU hashes", (4, 10), "29ba732acbee"),
    27: ("ring buffers", (5, 8), "457f44363a88"),
}
# By number in enum bpf_func_id (include/uapi/linux/bpf.h).
_HELPERS: dict[int, tuple[str, Release]] = {
    1: ("bpf_map_lookup_elem", (3, 19)), 2: ("bpf_map_update_elem", (3, 19)), 3: ("bpf_map_delete_elem", (3, 19)),
    4: ("bpf_probe_read", (4, 1)), 5: ("bpf_ktime_get_ns", (4, 1)), 6: ("bpf_trace_printk", (4, 1)),
    7: ("bpf_get_prandom_u32", (4, 1)), 8: ("bpf_get_smp_processor_id", (4, 1)),
    12: ("bpf_tail_call", (4, 2)), 14: ("bpf_get_current_pid_tgid", (4, 2)), 15: ("bpf_get_current_uid_gid", (4, 2)),
    16: ("bpf_get_current_comm", (4, 2)), 25: ("bpf_perf_event_output", (4, 4)),
    35: ("bpf_get_current_task", (4, 8)), 45: ("bpf_probe_read_str", (4, 11)),
    80: ("bpf_get_current_cgroup_id", (4, 18)), 112: ("bpf_probe_read_user", (5, 5)),
    113: ("bpf_probe_read_kernel", (5, 5)), 114: ("bpf_probe_read_user_str", (5, 5)),
    115: ("bpf_probe_read_kernel_str", (5, 5)), 118: ("bpf_jiffies64", (5, 5)), 125: ("bpf_ktime_get_boot_ns", (5, 8)),
    130: ("bpf_ringbuf_output", (5, 8)),
}
_MANY_INSTRUCTIONS: Release = (5, 2)  # kernel commit c04c0d2b968a; 4096 before, as still without CAP_BPF
_LOOPS: Release = (5, 3)  # 2589726d12a1
_FUNCTIONS: Release = (4, 16)  # cc8b0b92a169
_SHORT_JUMPS: Release = (5, 1)  # 092ed0968bb6
_ATOMICS: Release = (5, 12)  # 91c960b00566; a plain atomic add is as old as eBPF
_MOVED_VALUES: Release = (4, 9)  # 484611357c19
# Before, numbers that nobody looks at again keep the ways to a place apart (07016151a446), and helpers fill only stack
# that was written before (074f528eed40).
_LENIENT: Release = (4, 7)
_COPIES_OF_LOOKUPS: Release = (4, 10)  # 57a09bf0a416
_MEMORY_IN_VALUES: Release = (4, 11)  # 5722569bb9c3
_KEYS_IN_VALUES: Release = (4, 18)  # d71962f3e627
_PLACES_ON_STACK: Release = (5, 12)  # 01f810ace9ed
# What the verifier goes through before it gives up (BPF_COMPLEXITY_LIMIT_INSNS).
_VISITS: tuple[tuple[Release, int], ...] = (((3, 19), 32768), ((4, 7), 65536), ((4, 12), 98304), ((4, 14), 131072),
                                            ((5, 2), 1_000_000))

# The long-term kernels kcompat meets, oldest first; the last one stands for today's.
DIALECTS: tuple[str, ...] = ("4.4", "4.9", "4.14", "4.19", "5.4", "5.10", "current")


@dataclass(frozen=True, slots=True)
class Fitting:
    """One program in one dialect: what it costs there, and every reason why it would not load."""

    program: str
    instructions: int
    stack: int
    helpers: tuple[str, ...]
    visited: int
    refusals: tuple[str, ...]

    @property
    def loads(self) -> bool:
        return not self.refusals


def release_of(dialect: str) -> Release:
    """Raises KcompatError for a name that is not in `DIALECTS`."""
    if dialect not in DIALECTS:
        raise KcompatError(f"no dialect {dialect!r}; there are {', '.join(DIALECTS)}")
    if dialect == "current":
        return (99, 0)
    major, minor = dialect.split(".")
    return int(major), int(minor)


def check(compiled: Object, dialect: str) -> tuple[Fitting, ...]:
    """How each program of an object fares in a dialect. Maps count against every program that uses them."""
    release = release_of(dialect)
    kinds = {spec.name: spec.kind for spec in compiled.maps}
    return tuple(_fitting(program, kinds, release) for program in compiled.programs)


def _fitting(program: ObjectProgram, kinds: dict[str, int], release: Release) -> Fitting:
    walked = walk(program, Rules(release >= _MOVED_VALUES, release >= _COPIES_OF_LOOKUPS,
                                 release >= _MEMORY_IN_VALUES, release >= _KEYS_IN_VALUES,
                                 release >= _PLACES_ON_STACK))
    of_its_kind = tuple(_of_kind(program, release))
    strictly = release < _LENIENT and not (of_its_kind or walked.loops or walked.faults)
    gone = paths(program) if strictly else Paths(walked.visited, ())
    names = tuple(_HELPERS.get(number, (f"helper {number}", release))[0] for number in sorted(walked.helpers))
    refusals = (*of_its_kind, *_of_maps(program, kinds, release), *_of_code(program, walked, gone, release))
    return Fitting(program.name, program.size, walked.stack, names, gone.visited, refusals)


def _of_kind(program: ObjectProgram, release: Release) -> Iterator[str]:
    kind = KINDS[program.name.partition("__")[0]]
    since, commit = _PROGRAMS[kind]
    if release < since:
        yield f"{kind.name.lower()} programs came with {_spelled(since)} (kernel commit {commit})"


def _of_maps(program: ObjectProgram, kinds: dict[str, int], release: Release) -> Iterator[str]:
    for name in sorted({name for _, name in program.relocations}):
        if kinds[name] not in _MAPS:
            yield f"map {name} is of type {kinds[name]}, of which kcompat does not know when it came"
        elif release < _MAPS[kinds[name]][1]:
            what, since, commit = _MAPS[kinds[name]]
            yield f"map {name}: {what} came with {_spelled(since)} (kernel commit {commit})"


def _of_code(program: ObjectProgram, walked: Walk, gone: Paths, release: Release) -> Iterator[str]:
    for number in sorted(walked.helpers):
        if number not in _HELPERS:
            yield f"helper {number}: kcompat does not know when it came"
        elif release < _HELPERS[number][1]:
            yield f"{_HELPERS[number][0]} came with {_spelled(_HELPERS[number][1])}"
    if program.size > 4096 and release < _MANY_INSTRUCTIONS:
        yield f"{program.size} instructions; 4096 are allowed before {_spelled(_MANY_INSTRUCTIONS)}"
    if walked.stack > STACK:
        yield f"{walked.stack} bytes of stack; {STACK} are allowed"
    forms = ((walked.loops, _LOOPS, "loops"), (walked.calls_functions, _FUNCTIONS, "calls of functions"),
             (walked.short_jumps, _SHORT_JUMPS, "32-bit jumps"), (walked.atomics, _ATOMICS, "atomics that answer"))
    for used, since, what in forms:
        if used and release < since:
            yield f"{what} came with {_spelled(since)}"
    most = next(limit for since, limit in reversed(_VISITS) if release >= since)
    if gone.visited > most:
        yield f"some {gone.visited} instructions on all paths; the verifier gives up after {most}"
    for at, helper in gone.unwritten:
        yield f"instruction {at} hands {_HELPERS[helper][0]} bytes of the stack that nobody wrote"
    for at, fault in walked.faults:
        yield f"instruction {at} {fault}"


def _spelled(release: Release) -> str:
    return f"Linux {release[0]}.{release[1]}"
