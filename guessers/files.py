"""Sockets, files and the tables between: the way from a file descriptor to its sock, each step proved by its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guessers.memory import ReadFault
from guessers.pointers import Reader, places_of, shared
from guessers.search import Found, Sample, is_pointer, pointers
from kcompat.fields import find

FILES, FDT, FD, MAX_FDS = map(find, ("task_struct.files", "files_struct.fdt", "fdtable.fd", "fdtable.max_fds"))
F_INODE, OPS = find("file.f_inode"), find("socket.ops")
FILE_FAMILY = frozenset({FILES, FDT, FD, F_INODE, OPS})

TABLE_SIZE = 256  # more than struct fdtable, to see how common its size is
_FDTABLE_END = 128  # it is 56 bytes
_FILE_SIZE = 512  # struct file is under 300 bytes
_SOCKET_SIZE = 1024  # struct socket_alloc


@dataclass(frozen=True, slots=True)
class Way:
    """Offsets that lead from a task to the file of a descriptor, and where the file names its socket."""

    files: int
    fdt: int
    fd: int
    private_data: int


@dataclass(frozen=True, slots=True)
class Table:
    """A file table at one moment: its files_struct by candidate for `files`, its size, and sockets by descriptor."""

    files: Mapping[int, int]
    size: int
    sockets: Mapping[int, int]
    """Descriptor -> ``struct socket *``."""


@dataclass(frozen=True, slots=True)
class OurSocket:
    """What is known of a socket of ours and of its file. `sock` is None where no hook told it."""

    kind: tuple[int, int]
    inode: int
    sock: int | None
    socket: int
    file: int


def flipped(before: bytes, again: bytes, after: bytes, lowest: int) -> set[int]:
    """Offsets of a task_struct at which a pointer changed with unshare(CLONE_FILES), and had not changed by itself."""
    found = set()
    for at in pointers([before, again, after], len(before), lowest):
        if before[at:at + 8] == again[at:at + 8] != after[at:at + 8]:
            found.add(at)
    return found


class Ways:
    """Looks for the way through one file table that is made to grow: a new ``struct fdtable`` every time."""

    def __init__(self, read: Reader, lowest: int) -> None:
        self._read = read
        self.lowest = lowest
        self._seen: dict[int, bytes] = {}
        self.found: set[Way] | None = None
        self.tables: list[tuple[dict[Way, bytes], int]] = []
        self.tried = 0

    def observe(self, table: Table) -> None:
        """Drops the ways that do not lead to the sockets of this table. The first table is only remembered."""
        leads: dict[Way, bytes] = {}
        first = not self._seen
        for files, address in table.files.items():
            window = self.window(address, _SOCKET_SIZE)
            for at in pointers([window], len(window), self.lowest) if files in self._seen else ():
                if window[at:at + 8] != self._seen[files][at:at + 8]:
                    leads |= self._through(files, at, self.window(_word(window, at), TABLE_SIZE), table)
            self._seen[files] = window
        if not first:
            self.found = set(leads) if self.found is None else self.found & set(leads)
            self.tables.append((leads, table.size))

    def _through(self, files: int, fdt: int, fdtable: bytes, table: Table) -> dict[Way, bytes]:
        ways = {}
        for at in pointers([fdtable], _FDTABLE_END, self.lowest):
            self.tried += 1
            for back in shared(self._backs(_word(fdtable, at), fd, sock) for fd, sock in table.sockets.items()):
                ways[Way(files, fdt, at, back)] = fdtable
        return ways

    def _backs(self, array: int, fd: int, sock: int) -> set[int]:
        """Where the file at `fd` of a descriptor array names its socket; nowhere if it is no such array."""
        file = self.entry(array, fd)
        return set(places_of(self.window(file, _FILE_SIZE), sock.to_bytes(8, "little"), 8))

    def entry(self, array: int, fd: int) -> int:
        return self.word(array + 8 * fd)

    def word(self, address: int) -> int:
        """The pointer at an address; 0 where nothing can be read."""
        return _word(self.window(address, 8), 0)

    def window(self, address: int, size: int) -> bytes:
        """What can be read there: nothing, if that is no address."""
        if not is_pointer(address, self.lowest):
            return b""
        try:
            return self._read(address, size)
        except ReadFault:
            return b""


def found_ways(searches: Sequence[Ways]) -> list[Found]:
    """``files``, ``fdt`` and ``fd``: what every table that grew agrees on."""
    done = [s for s in searches if s.found is not None]
    ways = shared(s.found or set() for s in done)
    evidence = _evidence(sum(len(s.tables) for s in done), [sum(s.tried for s in done), len(ways)],
                         "unshared and grown file tables, followed from the task to our own sockets")
    return [Found(field, tuple(sorted({getattr(way, field.member) for way in ways})), evidence if done else _NONE)
            for field in (FILES, FDT, FD)]


def the_way(searches: Sequence[Ways]) -> Way | None:
    """The one way, if there is one."""
    ways = shared(s.found or set() for s in searches)
    return next(iter(ways)) if len(ways) == 1 else None


def table_samples(searches: Sequence[Ways], way: Way) -> list[Sample]:
    """Every fdtable seen, and how many descriptors /proc says it has room for."""
    return [table_sample(leads[way], size) for s in searches for leads, size in s.tables if way in leads]


def table_sample(fdtable: bytes, size: int) -> Sample:
    return Sample(fdtable, {MAX_FDS: (size.to_bytes(4, "little"),)}, TABLE_SIZE, f"fdtable of {size}")


def is_his(one: OurSocket, read: Reader) -> bool:
    """Whether the ``struct socket`` a descriptor led to has the inode number that fstat(2) gives for it."""
    return bool(places_of(read(one.socket, _SOCKET_SIZE), one.inode.to_bytes(8, "little"), 8))


def samples_of(ours: Sequence[OurSocket], read: Reader, file_size: int | None) -> tuple[list[Sample], list[Sample]]:
    """The struct socket and the struct file of each, with the pointers and the type that stand in them."""
    sockets: list[Sample] = []
    files: list[Sample] = []
    for one in ours:
        values = {find("socket.type"): (one.kind[1].to_bytes(2, "little"),),
                  find("socket.file"): (one.file.to_bytes(8, "little"),)}
        if one.sock is not None:
            values[find("socket.sk")] = (one.sock.to_bytes(8, "little"),)
        sockets.append(Sample(read(one.socket, _SOCKET_SIZE), values))
        back = {find("file.private_data"): (one.socket.to_bytes(8, "little"),)}
        files.append(Sample(read(one.file, file_size or _FILE_SIZE), back))
    return sockets, files


def cut(sample: Sample, end: int) -> Sample:
    """The same without what lies behind `end`."""
    return Sample(sample.window, sample.values, end, sample.label)


def search_inode(ours: Sequence[OurSocket], sockets: Sequence[Sample], files: Sequence[Sample]) -> tuple[Found, int]:
    """``f_inode``, and how far behind its socket the inode begins.

    A socket and its inode are one object: the pointer leads the same way behind every socket, and not past the
    inode's number. Pointers into the inode lead further than the one to it: an inode begins where it begins.
    """
    numbers = shared(set(places_of(s.window, o.inode.to_bytes(8, "little"), 8)) for o, s in zip(ours, sockets,
                                                                                          strict=True))
    if not numbers:
        return Found(F_INODE, (), _NONE), _SOCKET_SIZE
    leads: dict[int, list[int]] = {}
    tried = 0
    for at in range(0, min(f.end for f in files) - 7, 8):
        distances = {_word(f.window, at) - o.socket for o, f in zip(ours, files, strict=True)}
        tried += 1
        if len(distances) == 1 and 0 < (distance := distances.pop()) <= max(numbers):
            leads.setdefault(distance, []).append(at)
    if not leads:
        return Found(F_INODE, (), _evidence(len(ours), [tried, 0], "")), _SOCKET_SIZE
    nearest = min(leads)
    evidence = _evidence(len(ours), [tried, len(leads[nearest])], "leads behind our socket, where its inode is")
    return Found(F_INODE, tuple(leads[nearest]), evidence), nearest


def search_ops(ours: Sequence[OurSocket], sockets: Sequence[Sample]) -> Found:
    """``ops``: the same pointer for all sockets of a family and type, another one for all others."""
    kinds = [one.kind for one in ours]
    if len(set(kinds)) < 3:
        return Found(OPS, (), _NONE)
    lowest = min(one.socket for one in ours) >> 47 << 47
    places = [at for at in range(0, min(s.end for s in sockets) - 7, 8)
              if all(is_pointer(_word(s.window, at), lowest) for s in sockets)]
    found = tuple(at for at in places if _parts(sockets, kinds, at))
    exchanged = kinds[1:] + kinds[:1]
    evidence = _evidence(len(ours), [len(places), len(found)], "one pointer for each family and type")
    evidence |= {"distinct_values": len(set(kinds)),
                 "null_survivors": sum(_parts(sockets, exchanged, at) for at in places)}
    return Found(OPS, found, evidence)


def _parts(sockets: Sequence[Sample], kinds: Sequence[tuple[int, int]], at: int) -> bool:
    """Whether the words at `at` part the sockets just as their kinds do."""
    pairs = {(kind, _word(s.window, at)) for kind, s in zip(kinds, sockets, strict=True)}
    return len(pairs) == len({kind for kind, _ in pairs}) == len({word for _, word in pairs})


_NONE: dict[str, Any] = {"samples": 0}


def _evidence(samples: int, trail: list[int], method: str) -> dict[str, Any]:
    return {"samples": samples, "held_out": 0, "distinct_values": samples, "candidates_by_sample": trail,
            "refuted_by_held_out": [], "expected_false_positives": 0.0, "null_survivors": 0, "method": method}


def _word(window: bytes, at: int) -> int:
    return int.from_bytes(window[at:at + 8], "little")
