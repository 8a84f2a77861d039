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

from guessers.files import End as FileEnd
from guessers.files import Files, Memory, Table, Walk, Ways, conclude_files
from guessers.memory import KernelMemory
from guessers.namespace import in_own_thread, own_name, rename, unshare_files
from guessers.sampling import Sampler, slab_object_size
from guessers.search import lowest_pointer
from guessers.sockets import FILE_SIZE
from guessers.stimulus import UNASSIGNED, End
from guessers.tape import Tape

_TASK_SIZE = 16384  # struct task_struct, with every debug option
_STATUS = Path("/proc/thread-self/status")
_LISTENERS = 8  # a struct socket before 5.3 has six places for a pointer: each sock tells little
_limit_lock = threading.Lock()
_limits = (0, 0)
_guesses = 0


def collect_files(sampler: Sampler, rng: random.Random, families: Sequence[int], sk_socket: Sequence[int], *,
                  tables: int = 2, growths: int = 4) -> None:
    """Sockets of every kind, and `tables` file tables that grow `growths` times, while all are alive.

    Needs the one place of ``sk_socket``. A table doubles when it grows: as often as the limit on open files lets it.
    """
    haul, memory = sampler.haul, sampler.memory
    if len(sk_socket) != 1 or not memory.has("task"):
        haul.miss("nothing leads from a descriptor to its socket")
        return
    with ExitStack() as stack:
        ends = _open(sampler, rng, families, stack)
        socks = {end.sock.fileno(): sock for end in ends if (sock := _sock(sampler, end))}
        if not socks:
            haul.miss("no hook named a sock to look for behind a descriptor")
            return
        lowest = lowest_pointer(next(iter(socks.values())))
        live = Memory(memory.read, lowest)
        sockets = {fd: live.pointer(sock + sk_socket[0], 8, 0) for fd, sock in socks.items()}
        walks: list[Walk] = []
        with _many_descriptors():
            for _ in range(tables):
                walk = in_own_thread(lambda name: _walk(memory, lowest, name, sockets, growths, rng), own_name())
                walks += [walk] if walk else []
        task = _task(memory, own_name())
        if task is None or not walks:
            return
        facts = [FileEnd((end.sock.family, end.sock.type), os.fstat(fd).st_ino, fd, socks.get(fd))
                 for end in ends for fd in [end.sock.fileno()]]
        haul.files = files = Files(walks, task, _table_size(), facts, _task_size(),
                                   slab_object_size("filp") or FILE_SIZE, Tape.of(memory.read))
        conclude_files(files)  # for the tape: all it leads to is alive now, and gone later
        files.tape.stop()
        files.size = files.size if files.size == _table_size() else None


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


def _walk(memory: KernelMemory, lowest: int, name: bytes, sockets: dict[int, int], growths: int,
          rng: random.Random) -> Walk | None:
    """In a thread that ends with its table: stops sharing it, then lets it grow, with our sockets in the new part."""
    task = _task(memory, name)
    if task is None:
        return None
    live, size = Memory(memory.read, lowest), _task_size()
    before, again = live.window(task, size), live.window(task, size)
    unshare_files()
    walk = Walk(lowest, before, again, live.window(task, size))
    ways = Ways(walk)

    def look(planted: dict[int, int]) -> None:
        tape = Tape.of(memory.read)
        ways.observe(table := Table(_table_size(), {fd: sockets[source] for fd, source in planted.items()}, tape))
        tape.stop()
        walk.tables.append(table)

    look({})
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for _ in range(growths):
        room = range(_table_size(), min(2 * _table_size(), limit))
        if len(room) < 3:
            break
        sources = rng.sample(list(sockets), min(3, len(sockets)))
        planted = dict(zip(rng.sample(room, len(sources)), sources, strict=True))
        for fd, source in planted.items():
            os.dup2(source, fd, inheritable=False)
        look(planted)
    return walk


def _open(sampler: Sampler, rng: random.Random, families: Sequence[int], stack: ExitStack) -> list[End]:
    """Two sockets of each family and type; of those whose sock alone is told, enough to find it in its socket."""
    ends = []
    for family in families:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            for _ in range(_LISTENERS if kind == socket.SOCK_STREAM and not sampler.direct else 2):
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


def _task_size() -> int:
    return slab_object_size("task_struct") or _TASK_SIZE


def _table_size() -> int:
    """How many descriptors this thread's table has room for."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("FDSize:"))
