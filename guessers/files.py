"""File tables: the way from a task over its descriptors to our sockets, each step proved by its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dc_field

from guessers.pointers import behind, places_of, shared, word
from guessers.search import Found, Sample, by_chance, exchanged, pointers
from guessers.sockets import (
    F_INODE,
    FILE_SIZE,
    NOTHING,
    OPS,
    OurSocket,
    cut,
    evidence_of,
    is_his,
    samples_of,
    search_inode,
    search_ops,
)
from guessers.tape import Reader, Tape
from kcompat.fields import find

FILES, FDT, FD, MAX_FDS = map(find, ("task_struct.files", "files_struct.fdt", "fdtable.fd", "fdtable.max_fds"))
FILE_FAMILY = frozenset({FILES, FDT, FD, F_INODE, OPS})

TABLE_SIZE = 256  # more than struct fdtable, to see how common its size is
_FDTABLE_END = 128  # it is 56 bytes
_FILES_SIZE = 1024  # struct files_struct, with the descriptors it has room for itself


@dataclass(frozen=True, slots=True)
class Way:
    """Offsets that lead from a task to the file of a descriptor, and where the file names its socket."""

    files: int
    fdt: int
    fd: int
    private_data: int


@dataclass(frozen=True, slots=True)
class Table:
    """A file table at one moment: its size, our sockets in it by descriptor, and what was read of memory then."""

    size: int
    sockets: Mapping[int, int]
    """Descriptor -> ``struct socket *``."""
    tape: Tape


@dataclass(slots=True)
class Walk:
    """A thread that stopped sharing its file table, which then grew: a new ``struct fdtable`` every time."""

    lowest: int
    before: bytes
    again: bytes
    after: bytes
    """Its ``struct task_struct``, twice before it stopped sharing and once after."""
    tables: list[Table] = dc_field(default_factory=list)


@dataclass(frozen=True, slots=True)
class End:
    """What is known of a socket of ours: family and type, the number of its inode, its descriptor.

    `sock` is None where no hook told it.
    """

    kind: tuple[int, int]
    inode: int
    descriptor: int
    sock: int | None


@dataclass(slots=True)
class Files:
    """The file tables of a guess: two that were ours alone, and the one of `task` with a socket of every kind in it."""

    walks: list[Walk]
    task: int
    size: int | None
    """How many descriptors the task's table has room for; None where that changed meanwhile."""
    ends: list[End]
    task_size: int
    file_size: int
    tape: Tape


def flipped(before: bytes, again: bytes, after: bytes, lowest: int) -> set[int]:
    """Offsets of a task_struct at which a pointer changed with unshare(CLONE_FILES), and had not changed by itself."""
    found = set()
    for at in pointers([before, again, after], len(before), lowest):
        if before[at:at + 8] == again[at:at + 8] != after[at:at + 8]:
            found.add(at)
    return found


class Memory:
    """Kernel memory that is followed: nothing where no object can be, or nothing can be read."""

    def __init__(self, read: Reader, lowest: int) -> None:
        self._read = read
        self.lowest = lowest

    def window(self, address: int, size: int) -> bytes:
        return behind(address, size, self._read, self.lowest)

    def pointer(self, address: int, size: int, at: int) -> int:
        """The pointer at `at` of an object of that size; 0 where there is none."""
        return word(self.window(address, size), at)


class Ways:
    """Looks for the way through the file table of a walk."""

    def __init__(self, walk: Walk) -> None:
        self._lowest = walk.lowest
        self._files = {at: word(walk.after, at)
                       for at in flipped(walk.before, walk.again, walk.after, walk.lowest)}
        self._seen: dict[int, bytes] = {}
        self.found: set[Way] | None = None
        self.tables: list[tuple[dict[Way, bytes], int]] = []
        self.tried = 0
        self.null: set[Way] | None = None
        """The ways that would do as well if each descriptor had another one's socket."""
        for table in walk.tables:
            self.observe(table)

    def observe(self, table: Table) -> None:
        """Drops the ways that do not lead to the sockets of this table. The first table is only remembered."""
        memory = Memory(table.tape.read, self._lowest)
        leads: dict[Way, bytes] = {}
        null: set[Way] = set()
        first = not self._seen
        others = dict(zip(table.sockets, exchanged(list(table.sockets.values())), strict=True))
        for files, address in self._files.items():
            window = memory.window(address, _FILES_SIZE)
            for at in pointers([window], len(window), self._lowest) if files in self._seen else ():
                if window[at:at + 8] != self._seen[files][at:at + 8]:
                    fdtable = memory.window(word(window, at), TABLE_SIZE)
                    for way in self._through(memory, files, at, fdtable, table.sockets):
                        leads[way] = fdtable
                    null |= set(self._through(memory, files, at, fdtable, others))
            self._seen[files] = window
        if not first:
            self.found = set(leads) if self.found is None else self.found & set(leads)
            self.tables.append((leads, table.size))
            if others != table.sockets:
                self.null = null if self.null is None else self.null & null

    def _through(self, memory: Memory, files: int, fdt: int, fdtable: bytes, sockets: Mapping[int, int]) -> list[Way]:
        found = []
        for at in pointers([fdtable], _FDTABLE_END, self._lowest):
            self.tried += 1
            found += [Way(files, fdt, at, back) for back in shared(
                _backs(memory, word(fdtable, at), fd, sock) for fd, sock in sockets.items())]
        return found


def _backs(memory: Memory, array: int, fd: int, sock: int) -> set[int]:
    """Where the file at `fd` of a descriptor array names its socket; nowhere if it is no such array."""
    file = memory.pointer(array + 8 * fd, 8, 0)
    return set(places_of(memory.window(file, FILE_SIZE), sock.to_bytes(8, "little"), 8))


def found_ways(searches: Sequence[Ways]) -> list[Found]:
    """``files``, ``fdt`` and ``fd``: what every table that grew agrees on."""
    done = [s for s in searches if s.found is not None]
    if not done:
        return [Found(field, (), NOTHING) for field in (FILES, FDT, FD)]
    ways = shared(s.found or set() for s in done)
    tables = [leads for s in done for leads, _ in s.tables]
    nulls = [s.null for s in done if s.null is not None]
    # Each table was tried twice: with its sockets, and with these exchanged.
    tried, passed = sum(s.tried for s in done) // (2 * len(tables)), len(tables[0])
    evidence = evidence_of(len(tables), [tried, len(ways)], by_chance(tried, passed, len(tables), FILE_SIZE // 8),
                         len(shared(nulls)) if nulls else -1,
                         "unshared and grown file tables, followed from the task to our own sockets",
                         f"{passed} of {tried} ways through one table lead to all our sockets in it")
    return [Found(field, tuple(sorted({getattr(way, field.member) for way in ways})), evidence)
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


def follow(files: Files, way: Way) -> tuple[bytes, list[OurSocket | None]]:
    """The task's own fdtable, and each end's file and socket; None where a descriptor led to somebody else's."""
    memory = Memory(files.tape.read, files.walks[0].lowest)
    table = memory.window(memory.pointer(memory.pointer(files.task, files.task_size, way.files), _FILES_SIZE, way.fdt),
                          TABLE_SIZE)
    array = word(table, way.fd)
    ours: list[OurSocket | None] = []
    for end in files.ends:
        file = memory.pointer(array + 8 * end.descriptor, 8, 0)
        one = OurSocket(end.kind, end.inode, end.sock, memory.pointer(file, files.file_size, way.private_data), file)
        ours.append(one if is_his(one, memory.window) else None)
    return table, ours


def conclude_files(files: Files) -> tuple[list[Found], dict[str, list[Sample]]]:
    """All that the file tables tell."""
    searches = [Ways(walk) for walk in files.walks]
    found, samples = found_ways(searches), {}
    if way := the_way(searches):
        table, sockets = follow(files, way)
        samples["fdtable"] = table_samples(searches, way)
        # The table this thread shares with its process is of one size more; others may make it grow meanwhile.
        if table and files.size:
            samples["fdtable"].append(table_sample(table, files.size))
        if ours := [one for one in sockets if one]:
            memory = Memory(files.tape.read, files.walks[0].lowest)
            whole, samples["file"] = samples_of(ours, memory.window, files.file_size)
            inode, end = search_inode(ours, whole, samples["file"])
            samples["socket"] = [cut(sample, end) for sample in whole]
            found += [inode, search_ops(ours, samples["socket"])]
    return found, samples
