"""The bpf(2) and perf_event_open(2) system calls, through ctypes: no C library and no LLVM in a running process."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from enum import IntEnum
from functools import cache
from typing import NamedTuple

_NR = {"x86_64": (321, 298), "aarch64": (280, 241)}
_LOG_SIZES = (1 << 18, (1 << 24) - 1)  # the second is the largest that 4.4 to 5.1 take
PERF_FLAG_FD_CLOEXEC = 8
# struct bpf_prog_info up to its recursion_misses (5.12), before which run_time_ns and run_cnt (5.1) stand.
_INFO_SIZE, _RUN_TIME_AT = 216, 192


class Cmd(IntEnum):
    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_GET_INFO_BY_FD = 15
    RAW_TRACEPOINT_OPEN = 17
    MAP_LOOKUP_BATCH = 24
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    ENABLE_STATS = 32


class ProgType(IntEnum):
    SOCKET_FILTER = 1
    KPROBE = 2
    TRACEPOINT = 5
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18


class MapType(IntEnum):
    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9


class ProgramRefused(OSError):
    """The kernel would not load a program; `log` is the verifier's last word."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(code, os.strerror(code))
        self.log = log


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _numbers() -> tuple[int, int]:
    machine = platform.machine()
    if machine not in _NR:
        raise OSError(errno.ENOSYS, f"kcompat knows no system call numbers for {machine}")
    return _NR[machine]


def bpf(cmd: Cmd, attr: bytes | bytearray) -> int:
    """bpf(2). `attr` is changed in place by the commands that answer in it. Raises OSError."""
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr) if isinstance(attr, bytearray) else attr
    result = _libc().syscall(_numbers()[0], int(cmd), buffer, len(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def perf_event_open(attr: bytes, pid: int, cpu: int, group: int = -1, flags: int = PERF_FLAG_FD_CLOEXEC) -> int:
    """perf_event_open(2). Raises OSError."""
    result = _libc().syscall(_numbers()[1], attr, pid, cpu, group, flags)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def raise_memlock() -> None:
    """Before 5.11 maps and programs count against RLIMIT_MEMLOCK, whose default of 64 KiB holds none of ours."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def map_create(kind: int, key_size: int, value_size: int, max_entries: int, flags: int = 0, name: str = "") -> int:
    """A new map's file descriptor, close-on-exec."""
    attr = struct.pack("<IIIIIII16s", kind, key_size, value_size, max_entries, flags, 0, 0, name.encode()[:15])
    try:
        return bpf(Cmd.MAP_CREATE, attr)
    except OSError as error:
        # Names came with 4.15; an older kernel refuses any byte it does not know.
        if error.errno not in (errno.E2BIG, errno.EINVAL):
            raise
        return bpf(Cmd.MAP_CREATE, attr[:20])


def prog_load(kind: int, instructions: bytes, license_: str, kern_version: int, name: str = "",
              attach_type: int = 0) -> int:
    """A loaded program's file descriptor. Raises ProgramRefused with the verifier's log."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(license_.encode())
    safe_name = "".join(c if c.isalnum() or c == "_" else "_" for c in name)[:15]

    def attr(log: ctypes.Array[ctypes.c_char] | None, with_name: bool) -> bytes:
        head = struct.pack("<IIQQIIQII", kind, len(instructions) // 8, ctypes.addressof(code),
                           ctypes.addressof(licence), 1 if log else 0, len(log) if log else 0,
                           ctypes.addressof(log) if log else 0, kern_version, 0)
        if attach_type:  # these kinds are younger than names
            return head + struct.pack("16sII", safe_name.encode(), 0, attach_type)
        return head + struct.pack("16s", safe_name.encode()) if with_name else head

    for with_name in (True, False):
        try:
            return bpf(Cmd.PROG_LOAD, attr(None, with_name))
        except OSError as error:
            if error.errno == errno.E2BIG and with_name:
                continue
            if error.errno in (errno.EPERM, errno.ENOSYS):
                raise
            break
    for size in _LOG_SIZES:
        log = ctypes.create_string_buffer(size)
        for with_name in (True, False):
            try:
                return bpf(Cmd.PROG_LOAD, attr(log, with_name))
            except OSError as error:
                refused = ProgramRefused(error.errno or 0, log.value.decode(errors="replace"))
                if error.errno != errno.E2BIG:
                    break
        # Before 6.4 a log that does not fit is the error that is told, and its end, which has the reason, is missing.
        if refused.errno != errno.ENOSPC:
            break
    raise refused


class RunStats(NamedTuple):
    """Of a program; zeros where the kernel does not count it. The last is counted always, the others when asked for."""

    ns: int = 0
    runs: int = 0
    left_out: int = 0
    """Events it did not run for: it was at work on that processor already, interrupted or preempted."""


def run_stats(program: int) -> RunStats:
    info = ctypes.create_string_buffer(_INFO_SIZE)
    try:
        bpf(Cmd.OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", program, _INFO_SIZE, ctypes.addressof(info)))
    except OSError as error:
        # Before 4.13 there is no such command; a kernel that knows less of a program takes no longer a buffer of zeros.
        if error.errno in (errno.EINVAL, errno.E2BIG):
            return RunStats()
        raise
    return RunStats(*struct.unpack_from("<QQQ", info, _RUN_TIME_AT))


def enable_run_stats() -> int:
    """Makes the kernel count what programs cost, as long as the returned descriptor is open (5.8 on). OSError."""
    return bpf(Cmd.ENABLE_STATS, struct.pack("<I", 0))


def raw_tracepoint_open(name: str, program: int) -> int:
    """Attaches a raw tracepoint program for as long as the returned descriptor is open (4.17 on)."""
    text = ctypes.create_string_buffer(name.encode())
    return bpf(Cmd.RAW_TRACEPOINT_OPEN, struct.pack("<QI4x", ctypes.addressof(text), program))


def link_create(program: int, target: int, attach_type: int) -> int:
    """Attaches a program to a cgroup, beside others', for as long as the returned descriptor is open (5.7 on)."""
    return bpf(Cmd.LINK_CREATE, struct.pack("<IIII", program, target, attach_type, 0))
