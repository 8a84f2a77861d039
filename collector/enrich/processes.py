"""Who a pid is: the process's own name, where the kernel saw only a thread's, and the container it is in."""

from __future__ import annotations

import os
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from collector.packed_flows import NOT_KNOWN

_BOUND = 8192
_AT_ONCE = 1 << 14
# A successor may have the same pid and name, and be in another container.
_KEPT_S = 300.0
# The first pid namespace's number (include/linux/proc_ns.h): only from there /proc has the pids that programs tell.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
# docker, containerd, cri-o and podman name a container by 64 hexadecimal digits, in scopes `docker-ID.scope`,
# `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`, else as a directory of that name. Behind a colon it is
# containerd's `slice:prefix:ID` with the cgroupfs driver. ECS adds a number behind 32 digits. What watches over a
# container, conmon, has a control group with its id beside it, and is not in the container.
_CONTAINER = re.compile(r"(?:^|[-:_/])(?<!conmon-)([0-9a-f]{64}|[0-9a-f]{32}-\d{8,10})(?:\.scope)?(?=/|$)")
# Of cgroup v1, the hierarchy whose paths are about processes; any other if it has none.
_PREFERRED = ("", "name=systemd", "pids", "memory", "cpu")


class Process(NamedTuple):
    """`cgroup` and `container` are empty when there is none, or nobody can say any more."""

    name: str
    cgroup: str = ""
    container: str = ""


class Processes:
    """Answers (pid, comm) with a process, asked once in some minutes: what was right of a dead process stays, unless
    one of its pid and name is there then.

    Bounded, the least used goes first. `comm` is what the kernel called the thread that used the socket.
    """

    def __init__(self, proc: Path = Path("/proc"), bound: int = _BOUND) -> None:
        self._proc, self._bound = proc, bound
        # With the time until when it is not asked again.
        self._known: OrderedDict[tuple[int, str], tuple[Process, float]] = OrderedDict()
        self._trusts_pids = is_first_pid_namespace(proc)

    def find(self, pid: int, comm: str) -> Process:
        key, now_s = (pid, comm), time.monotonic()
        known = self._known.get(key)
        if known is None or now_s > known[1]:
            found = self._ask(pid, comm) if pid and self._trusts_pids else None
            if found is None:
                found = known[0] if known else Process(comm)
            known = self._known[key] = found, now_s + _KEPT_S
            if len(self._known) > self._bound:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return known[0]

    def tagged(self, pid: int, comm: str, containers: bool) -> tuple[str, Mapping[str, str]]:
        """The process's name, and the tags that say which container it is in, if these are wanted."""
        found = self.find(pid, comm)
        if not containers:
            return found.name, {}
        return found.name, {"container_id": found.container or NOT_KNOWN, "cgroup": found.cgroup or NOT_KNOWN}

    def _ask(self, pid: int, comm: str) -> Process | None:
        """From /proc, if the process there has, or has a thread of, the name that the socket's user had.

        Another name may be an exec(2) since, or a successor with the same pid: None, as of one that has ended.
        """
        process = f"{self._proc}/{pid}"
        try:
            name = _read(f"{process}/comm").rstrip("\n")
            if comm and name != comm and comm not in self._threads(Path(process)):
                return None
            cgroup = cgroup_path(_read(f"{process}/cgroup"))
        except OSError:
            return None
        return Process(name, cgroup, container_id(cgroup))

    def _threads(self, process: Path) -> set[str]:
        names = set()
        with suppress(OSError):
            for thread in (process / "task").iterdir():
                with suppress(OSError):
                    names.add(_read(f"{thread}/comm").rstrip("\n"))
        return names


def _read(path: str) -> str:
    """There may be thousands to read, most of which are gone: Path.read_text takes four times as long."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(fd, _AT_ONCE), b"")).decode(errors="replace")
    finally:
        os.close(fd)


def is_first_pid_namespace(proc: Path = Path("/proc")) -> bool:
    """Whether /proc numbers processes as the kernel does. A kernel without such namespaces has only one."""
    try:
        return (proc / "self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return True


def cgroup_path(text: str) -> str:
    """The path of /proc/PID/cgroup (cgroups(7)) that tells most: one with a container, else v2's, else systemd's."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths |= dict.fromkeys(controllers.split(","), path)
    known = [paths[name] for name in _PREFERRED if len(paths.get(name, "/")) > 1]
    return next((path for path in known if container_id(path)), known[0] if known else next(iter(paths.values()), ""))


def container_ids(cgroup: str) -> tuple[str, ...]:
    """The containers that a cgroup path names, the outermost first: one may run in another."""
    return tuple(_CONTAINER.findall(cgroup))


def container_id(cgroup: str) -> str:
    """The innermost container that a cgroup path names."""
    return next(reversed(container_ids(cgroup)), "")
