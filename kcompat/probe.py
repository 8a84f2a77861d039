"""Trials of single kernel features: each does the thing once, undoes it, and says what worked or raises OSError."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from kcompat import attach
from kcompat.bpf import Object
from kcompat.errors import Missing
from kcompat.load import Loaded
from kcompat.maps import MapSpec
from kcompat.sysbpf import Cmd, MapType, ProgramRefused, ProgType, bpf, map_create, prog_load, raise_memlock
from kcompat.version import running_version_code

_RINGBUF = 27
_HELPER_PROBE_READ, _HELPER_PROBE_READ_KERNEL = 4, 113
_CLONE_NEWNET = 0x40000000
# Functions every kernel has and that are not inlined, rarely called first.
_FUNCTIONS = ("tcp_v4_connect", "sock_common_getsockopt", "do_exit", "vfs_read")
_RETURN_0 = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # r0 = 0; exit


class Denied(OSError):
    """We are not allowed to find out: nothing was learnt about the kernel."""


def require_bpf() -> None:
    """Raises Missing or Unsupported where no map can be made, before anybody compiles: bcc would only say EPERM."""
    Loaded(Object((), (MapSpec("kcompat_probe", MapType.ARRAY, 4, 8, 1),), "GPL"), 0).close()


def bpf_syscall() -> str:
    with _map(MapType.ARRAY, 4, 8, 1):
        return "maps can be made"


def kprobe() -> str:
    with _program(ProgType.KPROBE) as program:
        refused: OSError | None = None
        for function in _FUNCTIONS:
            try:
                attach.kprobe(program, function).close()
            except OSError as error:
                refused = error
                continue
            except Missing as error:
                # Without a kprobe PMU the way is through tracefs.
                if "tracefs" not in _file_systems():
                    raise OSError(errno.ENOENT, "no kprobe PMU, and this kernel has no tracefs") from error
                raise Denied(errno.ENOENT, "no kprobe PMU, and tracefs is not mounted") from error
            return f"attached to {function}"
        raise OSError(errno.ENOENT, f"no function could be probed: {refused}") from refused


def _file_systems() -> list[str]:
    return Path("/proc/filesystems").read_text().split()


def raw_tracepoint() -> str:
    with _program(ProgType.RAW_TRACEPOINT) as program:
        attach.raw_tracepoint(program, "sched_process_exec").close()
        return "attached to sched_process_exec"


def tracepoint() -> str:
    """Raises Missing where nothing lacks but tracefs, which is not mounted."""
    with _program(ProgType.TRACEPOINT) as program:
        where = attach.tracefs()
        attach.tracepoint(program, "sched", "sched_process_exec").close()
        return f"tracefs is at {where}"


def uprobe() -> str:
    # Programs on uprobes are of the kprobe type; a real one would have to patch somebody's code.
    with _program(ProgType.KPROBE):
        for path in (Path("/sys/bus/event_source/devices/uprobe"), Path("/sys/kernel/tracing/uprobe_events"),
                     Path("/sys/kernel/debug/tracing/uprobe_events")):
            if path.exists():
                return str(path)
    raise OSError(errno.ENOENT, "neither a uprobe PMU nor uprobe_events in tracefs")


def perf_buffer() -> str:
    with _map(MapType.PERF_EVENT_ARRAY, 4, 4, 1):
        return "BPF_MAP_TYPE_PERF_EVENT_ARRAY"


def ring_buffer() -> str:
    with _map(_RINGBUF, 0, 0, os.sysconf("SC_PAGE_SIZE")):
        return "BPF_MAP_TYPE_RINGBUF"


def lru_hash() -> str:
    with _map(MapType.LRU_HASH, 4, 8, 64):
        return "BPF_MAP_TYPE_LRU_HASH"


def batch_ops() -> str:
    """An empty map answers ENOENT where the call is known."""
    with _map(MapType.HASH, 4, 8, 1) as fd:
        keys, values, token = (ctypes.create_string_buffer(16) for _ in range(3))
        attr = bytearray(struct.pack("<QQQQIIQQ", 0, ctypes.addressof(token), ctypes.addressof(keys),
                                     ctypes.addressof(values), 1, fd, 0, 0))
        try:
            bpf(Cmd.MAP_LOOKUP_BATCH, attr)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    return "BPF_MAP_LOOKUP_BATCH"


def probe_read() -> str:
    return _helper(_HELPER_PROBE_READ, "bpf_probe_read")


def probe_read_kernel() -> str:
    return _helper(_HELPER_PROBE_READ_KERNEL, "bpf_probe_read_kernel")


def _helper(number: int, name: str) -> str:
    """A program that calls helper(stack, 8, NULL), never run: the verifier decides."""
    call = b"".join(struct.pack("<BBhi", *i) for i in (
        (0x7A, 10, -8, 0),      # *(u64 *)(r10 - 8) = 0
        (0xBF, 0xA1, 0, 0),     # r1 = r10
        (0x07, 1, 0, -8),       # r1 += -8
        (0xB7, 2, 0, 8),        # r2 = 8
        (0xB7, 3, 0, 0),        # r3 = 0
        (0x85, 0, 0, number)))  # call
    refused: OSError | None = None
    for kind in (ProgType.RAW_TRACEPOINT, ProgType.TRACEPOINT, ProgType.KPROBE):
        try:
            with _program(kind, call + _RETURN_0):
                return name
        except Denied:
            raise
        except OSError as error:
            refused = error
    raise OSError(errno.EINVAL, f"no program may call {name}") from refused


def packet_socket() -> str:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0).close()
    except PermissionError as error:
        if os.geteuid() != 0:
            raise Denied(error.errno, "packet sockets are for root here") from error
        raise OSError(error.errno, "packet sockets are forbidden: no CAP_NET_RAW, or a seccomp profile") from error
    return "packets can be looked at"


def net_namespace() -> str:
    if not Path("/proc/self/ns/net").exists():
        raise OSError(errno.ENOENT, "/proc/self/ns/net is not there")
    code = _in_thread(_unshare_net)
    if code == errno.EPERM and os.geteuid() != 0:
        raise Denied(code, "network namespaces exist; making one needs root")
    if code:
        raise OSError(code, f"one cannot be made: {os.strerror(code)}")
    return "private ones can be made"


def _unshare_net() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc.unshare(_CLONE_NEWNET) == 0 else ctypes.get_errno()


def _in_thread(work: Callable[[], int]) -> int:
    """A namespace belongs to the thread that made it and ends with it."""
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


@contextmanager
def _map(kind: int, key_size: int, value_size: int, entries: int) -> Iterator[int]:
    raise_memlock()
    with _told():
        fd = map_create(kind, key_size, value_size, entries)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _program(kind: int, code: bytes = _RETURN_0) -> Iterator[int]:
    raise_memlock()
    with _told():
        fd = prog_load(kind, code, "GPL", _version_code(), "kcompat_probe")
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _told() -> Iterator[None]:
    """EPERM for somebody who is not root says nothing of the kernel."""
    try:
        yield
    except ProgramRefused as error:
        words = [line for line in error.log.splitlines() if line.strip() and not line.startswith("processed")]
        raise OSError(error.errno, words[-1] if words else error.strerror) from error
    except OSError as error:
        if error.errno == errno.EPERM and os.geteuid() != 0:
            raise Denied(error.errno, "bpf(2) is for root here") from error
        raise


@cache
def _version_code() -> int:
    return running_version_code(os.uname().release)
