"""File tables of our own: a thread that stops sharing them, descriptors where we choose, tables that grow."""

from __future__ import annotations

import os
import random
import resource
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from guessers.files import (
    TABLE_SIZE,
    OurSocket,
    Table,
    Way,
    Ways,
    cut,
    flipped,
    found_ways,
    is_his,
    samples_of,
    search_inode,
    search_ops,
    table_sample,
    table_samples,
    the_way,
)
from guessers.memory import KernelMemory
from guessers.namespace import in_own_thread, own_name, rename, unshare_files
from guessers.sampling import Haul, Sampler, slab_object_size
from guessers.search import lowest_pointer
from guessers.stimulus import UNASSIGNED, End
from kcompat.fields import find

_TASK_SIZE = 16384  # struct task_struct, with every debug option
_STATUS = Path("/proc/thread-self/status")
_limit_lock = threading.Lock()
_limits = (0, 0)
_guesses = 0


def collect_files(sampler: Sampler, rng: random.Random, families: Sequence[int], *, tables: int = 2,
                  growths: int = 4) -> None:
    """Sockets of every kind, and `tables` file tables that grow `growths` times, while all are alive.

    Needs ``sk_socket``. A table doubles when it grows: as often as the limit on open files lets it.
    """
    haul, memory = sampler.haul, sampler.memory
    places = haul.reached[find("sk_socket")].candidates
    if len(places) != 1 or not memory.has("task"):
        haul.miss("nothing leads from a descriptor to its socket")
        return
    with ExitStack() as stack:
        ends = _open(sampler, rng, families, stack)
        socks = {end.sock.fileno(): sock for end in ends if (sock := _sock(sampler, end))}
        if not socks:
            haul.miss("no hook named a sock to look for behind a descriptor")
            return
        lowest = lowest_pointer(next(iter(socks.values())), os.uname().machine)
        searches: list[Ways] = []
        kernel = Ways(memory.read, lowest)
        sockets = {fd: kernel.word(sock + places[0]) for fd, sock in socks.items()}
        with _many_descriptors():
            for _ in range(tables):
                searches.append(Ways(memory.read, lowest))
                in_own_thread(lambda name: _walk(memory, name, searches[-1], sockets, growths, rng), own_name())
        for found in found_ways(searches):
            haul.reached[found.field] = found
        task = _task(memory, own_name())
        if task and (way := the_way(searches)):
            haul.flows["fdtable"] = table_samples(searches, way)
            size = _table_size()
            fdtable = kernel.word(kernel.word(task + way.files) + way.fdt)
            window = kernel.window(fdtable, TABLE_SIZE)
            # The table this thread shares with its process is of one size more; others may make it grow meanwhile.
            if window and size == _table_size():
                haul.flows["fdtable"].append(table_sample(window, size))
            _follow(haul, kernel, kernel.word(fdtable + way.fd), way, ends, socks)


@contextmanager
def _many_descriptors() -> Iterator[None]:
    """Lets tables grow as far as they may at all: the usual limit of 1024 leaves a table that is large already no room.

    The limit is the process's, and there may be two guesses in one: the last of them gives it back.
    """
    global _guesses, _limits
    with _limit_lock:
        if not _guesses:
            _limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (_limits[1], _limits[1]))
        _guesses += 1
    try:
        yield
    finally:
        with _limit_lock:
            _guesses -= 1
            if not _guesses:
                resource.setrlimit(resource.RLIMIT_NOFILE, _limits)


def _walk(memory: KernelMemory, name: bytes, ways: Ways, sockets: dict[int, int], growths: int,
          rng: random.Random) -> None:
    """In a thread that ends with its table: stops sharing it, then lets it grow, with our sockets in the new part."""
    task = _task(memory, name)
    if task is None:
        return
    size = slab_object_size("task_struct") or _TASK_SIZE
    before, again = ways.window(task, size), ways.window(task, size)
    unshare_files()
    after = ways.window(task, size)
    files = {at: int.from_bytes(after[at:at + 8], "little") for at in flipped(before, again, after, ways.lowest)}
    ways.observe(Table(files, _table_size(), {}))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for _ in range(growths):
        room = range(_table_size(), min(2 * _table_size(), limit))
        if len(room) < 3:
            return
        planted = {fd: rng.choice(list(sockets)) for fd in rng.sample(room, 3)}
        for fd, source in planted.items():
            os.dup2(source, fd, inheritable=False)
        ways.observe(Table(files, _table_size(), {fd: sockets[source] for fd, source in planted.items()}))


def _follow(haul: Haul, kernel: Ways, array: int, way: Way, ends: Sequence[End], socks: dict[int, int]) -> None:
    """From every descriptor to its file and its socket, and what stands in those."""
    ours = []
    for end in ends:
        fd = end.sock.fileno()
        file = kernel.entry(array, fd)
        one = OurSocket((end.sock.family, end.sock.type), os.fstat(fd).st_ino, socks.get(fd),
                        kernel.word(file + way.private_data), file)
        if is_his(one, kernel.window):
            ours.append(one)
        else:
            haul.miss("a descriptor led to another socket than ours: its table grew meanwhile")
    if not ours:
        return
    sockets, files = samples_of(ours, kernel.window, slab_object_size("filp"))
    inode, end_of_socket = search_inode(ours, sockets, files)
    haul.flows |= {"file": files, "socket": [cut(sample, end_of_socket) for sample in sockets]}
    for found in (inode, search_ops(ours, haul.flows["socket"])):
        haul.reached[found.field] = found


def _open(sampler: Sampler, rng: random.Random, families: Sequence[int], stack: ExitStack) -> list[End]:
    """Two sockets of each family and type."""
    ends = []
    for family in families:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            for _ in range(2):
                protocol = rng.choice(UNASSIGNED) if kind == socket.SOCK_RAW else 0
                with suppress(OSError):
                    ends.append(sampler.stimulus.open(family, kind, protocol))
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        ends += [End(stack.enter_context(sock), 0, "unix") for sock in socket.socketpair(socket.AF_UNIX, kind)]
    rng.shuffle(ends)
    return ends


def _sock(sampler: Sampler, end: End) -> int | None:
    """The ``struct sock *`` of one of ours, if a hook tells it."""
    if end.sock.family == socket.AF_UNIX:
        return None
    if sampler.direct:
        address = sampler.pointer(end)
    elif end.sock.type == socket.SOCK_STREAM:
        calls = sampler.watch(end.sock.listen)
        address = calls[0][0] if calls else None
    else:
        return None
    return address if address and sampler.is_his(end, address) else None


def _task(memory: KernelMemory, name: bytes) -> int | None:
    """The ``struct task_struct *`` of this thread: it is handed to a hook when we are given the name we have."""
    memory.clear()
    rename(name)
    return next((call.args[0] for call in memory.calls() if call.hook.object == "task"), None)


def _table_size() -> int:
    """How many descriptors this thread's table has room for."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("FDSize:"))
