"""Attaches loaded programs to kernel functions and tracepoints; closing what is returned detaches them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kcompat import overlay
from kcompat.errors import Missing
from kcompat.sysbpf import link_create, perf_event_open, raw_tracepoint_open

_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")
_UPROBE_PMU = Path("/sys/bus/event_source/devices/uprobe")
_PERF_TYPE_TRACEPOINT = 2
_IOC_ENABLE = 0x2400
_IOC_SET_BPF = 0x40042408
_ATTR_SIZE = 112
_RETURNS = 1024
_serial = itertools.count()
# No other process makes names with it: a pid says who it was only within one namespace, and pid 1 comes back.
_mark = os.urandom(4).hex()
_OURS = re.compile(r"^\w+:(\w+/kcompat_(\d+)_(\w+)) ", re.MULTILINE)
_tidied: set[str] = set()
_CGROUP_NAMESPACE = Path("/proc/self/ns/cgroup")
_FIRST_CGROUP_NAMESPACE = 0xEFFF_FFFB  # PROC_CGROUP_INIT_INO
CGROUP_HOOKS = {"udp4_sendmsg": 14, "udp6_sendmsg": 15, "udp4_recvmsg": 19, "udp6_recvmsg": 20}
"""What a cgroup's processes do, as enum bpf_attach_type numbers it: sending from 4.18 on (kernel commit 1cedee13d25a),
receiving from 5.2 (983695fa6765)."""


@dataclass(slots=True)
class Attachment:
    """Something attached: `name` for people, `close` undoes it."""

    name: str
    _undo: Callable[[], None] | None

    @property
    def is_attached(self) -> bool:
        return self._undo is not None

    def close(self) -> None:
        undo, self._undo = self._undo, None
        if undo:
            undo()


def tracefs() -> Path:
    """Where tracefs is mounted. Raises Missing with the command that mounts it."""
    for path in _TRACEFS:
        if (path / "events").is_dir():
            return path
    raise Missing("tracefs is not mounted: mount -t tracefs nodev /sys/kernel/tracing")


def raw_tracepoint(program: int, name: str) -> Attachment:
    """Raises OSError: ENOENT when the kernel has no such tracepoint."""
    fd = raw_tracepoint_open(name, program)
    return Attachment(f"raw_tp:{name}", lambda: os.close(fd))


def tracepoint(program: int, category: str, name: str) -> Attachment:
    """Raises Missing without tracefs, OSError ENOENT when the kernel has no such tracepoint."""
    event = int((tracefs() / "events" / category / name / "id").read_text())
    return _attach_event(program, f"tracepoint:{category}:{name}", _PERF_TYPE_TRACEPOINT, event, 0)


def cgroup(program: int, hook: str) -> Attachment:
    """To the root of all cgroups of version 2, which a socket is in whatever else manages its process.

    Raises Missing where it is not mounted or not to be seen, OSError where another program has it for itself.
    """
    root = os.open(_cgroup_root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = link_create(program, root, CGROUP_HOOKS[hook])
    finally:
        os.close(root)
    return Attachment(f"cgroup:{hook}", lambda: os.close(fd))


def _cgroup_root() -> str:
    """In a cgroup namespace of one's own, its root is not that of the machine."""
    if _CGROUP_NAMESPACE.exists() and _CGROUP_NAMESPACE.stat().st_ino != _FIRST_CGROUP_NAMESPACE:
        raise Missing("the root of all cgroups is not to be seen from a cgroup namespace: run outside of containers")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 ") and words.split()[3] == "/":
            return words.split()[4].encode().decode("unicode_escape")
    raise Missing("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")


def kprobe(program: int, function: str, *, at_return: bool = False) -> Attachment:
    """On entry to a kernel function, or on its return.

    Through the kprobe PMU (4.17 on), which cannot leave anything behind, else through tracefs. Returns through tracefs
    where it can be asked for more of them at a time: a call that waits in a function keeps what sees its return, of
    which the PMU has as many as processors, and does not tell of those it had none for.
    Raises OSError: ENOENT or EINVAL when the function cannot be probed; Missing when the only way is tracefs and it
    is not mounted.
    """
    kind = "kretprobe" if at_return else "kprobe"
    name = f"{kind}:{function}"
    if at_return and _has_many_returns():
        try:
            return _through_tracefs(program, "kprobe", f"r{_RETURNS}", function, name)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
    if _KPROBE_PMU.is_dir():
        function_name = ctypes.create_string_buffer(function.encode())
        return _attach_event(program, name, int((_KPROBE_PMU / "type").read_text()),
                             _retprobe_bit() if at_return else 0, ctypes.addressof(function_name))
    try:
        return _through_tracefs(program, "kprobe", "r" if at_return else "p", function, name)
    except Missing as error:
        raise Missing(f"{kind} {function}: the kernel shows no kprobe PMU (none before 4.17, none without "
                      f"CONFIG_KPROBES), and {error}") from error


def uprobe(program: int, path: str, offset: int, *, at_return: bool = False, file: int | None = None) -> Attachment:
    """On entry to the function at this offset of a file, or on its return, in every process that runs it, now or later.

    Through the uprobe PMU (4.17 on), else through tracefs. The file is looked up once: another one under the same
    name is another file. `file` is a descriptor of it where the path, as that of a process, may lead elsewhere by now.
    Raises OSError, EINVAL where no instruction begins; Missing when the only way is tracefs and it is not mounted, or
    when the file's place in an overlay cannot be found.
    """
    name = f"{'uretprobe' if at_return else 'uprobe'}:{path}:{offset:#x}"
    try:
        return _uprobe(program, path if file is None else f"/proc/self/fd/{file}", offset, name, at_return=at_return)
    except OSError as error:
        # Before 4.19 (kernel commit f0a2aa5a2a40) an overlay's own inode is taken, whose pages nobody can read.
        if error.errno != errno.EIO or (layered := overlay.beneath(path, file=file)) is None:
            raise
        return _uprobe(program, layered, offset, name, at_return=at_return)


def _uprobe(program: int, path: str, offset: int, name: str, *, at_return: bool) -> Attachment:
    if _UPROBE_PMU.is_dir():
        path_name = ctypes.create_string_buffer(os.fsencode(path))
        return _attach_event(program, name, int((_UPROBE_PMU / "type").read_text()),
                             _retprobe_bit(_UPROBE_PMU) if at_return else 0, ctypes.addressof(path_name), offset)
    # Not by its name: that may have what tracefs takes for separators in it.
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        where = f"/proc/self/fd/{fd}:{offset:#x}"
        return _through_tracefs(program, "uprobe", "r" if at_return else "p", where, name)
    finally:
        os.close(fd)


def _retprobe_bit(pmu: Path = _KPROBE_PMU) -> int:
    """The config bit that asks the PMU for a return probe: its format file says ``config:0``."""
    return 1 << int((pmu / "format" / "retprobe").read_text().strip().partition(":")[2])


def _has_many_returns() -> bool:
    """From 4.12 on (kernel commit 696ced4fb1d7); before, the number is taken for part of a name."""
    try:
        return "r[maxactive]" in (tracefs() / "README").read_text()
    except (Missing, OSError):
        return False


def _through_tracefs(program: int, what: str, letter: str, where: str, name: str) -> Attachment:
    """An event of our own, made in ``kprobe_events`` or ``uprobe_events`` and taken away again when it is closed."""
    root = tracefs()
    if what not in _tidied:
        _tidied.add(what)
        _take_away_orphans(root / f"{what}_events")
    with suppress(_TakenAway):
        return _as_event(program, root, what, letter, where, name)
    return _as_event(program, root, what, letter, where, name)


class _TakenAway(OSError):
    """Before anything was attached to it, by one who began in that moment and took it for an orphan."""


def _as_event(program: int, root: Path, what: str, letter: str, where: str, name: str) -> Attachment:
    event = f"kcompat_{os.getpid()}_{_mark}_{next(_serial)}"
    _append(root / f"{what}_events", f"{letter}:{what}s/{event} {where}\n")
    try:
        number = int((root / "events" / f"{what}s" / event / "id").read_text())
        attached = _attach_event(program, name, _PERF_TYPE_TRACEPOINT, number, 0)
    except OSError as error:
        try:
            _append(root / f"{what}_events", f"-:{what}s/{event}\n")
        except FileNotFoundError:
            raise _TakenAway(errno.ENOENT, f"{name}: its event was taken away") from error
        raise

    def undo() -> None:
        attached.close()
        with suppress(OSError):  # a process that was forked meanwhile still holds it: the next start takes it away
            _append(root / f"{what}_events", f"-:{what}s/{event}\n")

    return Attachment(name, undo)


def _take_away_orphans(events: Path) -> None:
    """Who was killed left events, to which nothing is attached any more. One that is in use cannot be taken away.

    That is why those of our own pid that this process did not make may be tried: who was killed may have been pid 1 of
    its container, as we are, and another container's pid 1 is at work with its own.
    """
    for group, pid, serial in _OURS.findall(events.read_text()):
        is_another = int(pid) == os.getpid() and not serial.startswith(f"{_mark}_")
        if is_another or not Path(f"/proc/{pid}").exists():
            with suppress(OSError):
                _append(events, f"-:{group}\n")


def _append(path: Path, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _attach_event(program: int, name: str, kind: int, config: int, config1: int, config2: int = 0) -> Attachment:
    # struct perf_event_attr: type, size, config, sample_period, sample_type, read_format, flags, wakeup_events,
    # bp_type, config1, config2, then zeros.
    attr = struct.pack("<IIQQQQQIIQQ", kind, _ATTR_SIZE, config, 1, 0, 0, 0, 1, 0, config1,
                       config2).ljust(_ATTR_SIZE, b"\0")
    fd = perf_event_open(attr, -1, 0)
    try:
        fcntl.ioctl(fd, _IOC_SET_BPF, program)
        fcntl.ioctl(fd, _IOC_ENABLE, 0)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EEXIST:
            raise OSError(errno.EEXIST, f"{name}: this kernel allows one BPF program an event") from error
        raise
    return Attachment(name, lambda: os.close(fd))
