import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guessers.files import (
    End,
    Files,
    Memory,
    Table,
    Walk,
    Way,
    Ways,
    conclude_files,
    flipped,
    found_ways,
    table_samples,
    the_way,
)
from guessers.memory import ReadFault
from guessers.search import search
from guessers.sockets import FILE_SIZE, OurSocket, cut, is_his, samples_of, search_inode, search_ops
from guessers.tape import Tape
from kcompat.fields import find
from tests.guessers.test_pointers import LOWEST, put
from tests.guessers.test_pointers import Memory as Objects

KINDS = tuple(product((2, 10, 1), (1, 2, 3)))
seeds = st.integers(0, 2**48)


class Heap(Objects):
    """Kernel memory that can be read from the middle of an object, too."""

    def read(self, address, size):
        assert LOWEST <= address < 0xFFFF_FFFF_FFFF_F000, f"{address:#x} is no kernel address"
        for start, data in self.objects.items():
            if start <= address < start + len(data):
                return bytes(data[address - start:address - start + size])
        raise ReadFault(address, 14)


class Kernel:
    """A task, its file table and sockets in it, laid out at random, among pointers that lead elsewhere."""

    def __init__(self, seed, sockets=6):
        self.rng = rng = random.Random(seed)
        self.heap = Heap(rng)
        self.files_at, self.fdt_at, self.back_at = (8 * rng.randrange(30) for _ in range(3))
        self.fd_at, self.max_at = rng.choice(((8, 0), (0, 8), (16, 40)))
        self.file_at, self.type_at, self.ops_at, self.sk_at = rng.sample(range(0, 96, 8), 4)
        self.inode_at = rng.choice([at for at in range(0, 240, 8) if at != self.back_at])
        self.inode_begins, self.number_at = 128, 192
        self.ops = {kind: self.heap.place(bytes(64)) for kind in KINDS}
        self.ours = [self.socket(KINDS[n % len(KINDS)]) for n in range(sockets)]
        self.elsewhere = self.heap.place(rng.randbytes(512))

    def socket(self, kind):
        rng, heap = self.rng, self.heap
        inode, sock = rng.randrange(20_000, 90_000), heap.place(bytes(64))
        body = bytearray(1024)
        socket, file = heap.place(body), None
        made = bytearray(rng.randbytes(256))
        put(made, self.back_at, socket, 8)
        put(made, self.inode_at, socket + self.inode_begins, 8)
        file = heap.place(made)
        for at, value, width in ((self.file_at, file, 8), (self.type_at, kind[1], 2), (self.ops_at, self.ops[kind], 8),
                                 (self.sk_at, sock, 8), (self.number_at, inode, 8)):
            put(body, at, value, width)
        heap.objects[socket] = bytes(body)
        return OurSocket(kind, inode, sock, socket, file)

    def table(self, size, planted, spoil=None):
        """A Table of that size: the files_struct stays where it is, the fdtable is a new one."""
        array = bytearray(8 * size)
        for fd, one in planted.items():
            put(array, 8 * fd, one.file, 8)
        if spoil is not None:
            put(array, 8 * spoil, self.elsewhere, 8)
        fdtable = bytearray(256)
        put(fdtable, self.fd_at, self.heap.place(array), 8)
        put(fdtable, self.max_at, size, 4)
        put(fdtable, 24, self.heap.place(bytes(64)), 8)
        files = bytearray(1024)
        put(files, self.fdt_at, self.heap.place(fdtable), 8)
        put(files, 512, self.heap.place(self.rng.randbytes(256)), 8)  # changes too, and leads to nothing
        put(files, 520, self.elsewhere, 8)
        self.heap.objects[self.files] = bytes(files)
        self.fdtable = fdtable
        tape = Tape.of(self.heap.read)
        return Table(size, {fd: one.socket for fd, one in planted.items()}, tape)

    def walk(self, growths=3, spoil=None):
        """A task that stopped sharing its files_struct, which a pointer beside it seems to do as well."""
        self.files, decoy = (self.heap.place(self.rng.randbytes(1024)) for _ in range(2))
        before, after = bytearray(512), bytearray(512)
        for at, address in ((self.files_at, self.files), (240, decoy)):
            put(before, at, self.elsewhere, 8)
            put(after, at, address, 8)
        walk = Walk(LOWEST, bytes(before), bytes(before), bytes(after))
        for n in range(growths + 1):
            size = 64 << n
            planted = dict(zip(self.rng.sample(range(size // 2, size), 3), self.rng.sample(self.ours, 3),
                               strict=True)) if n else {}
            spoilt = next(iter(planted)) if n and spoil == n - 1 else None
            walk.tables.append(table := self.table(size, planted, spoilt))
            Ways(walk)  # reads what stands there now
            table.tape.stop()
        return walk

    def ways(self, growths=3, spoil=None):
        return Ways(self.walk(growths, spoil))

    def samples(self):
        return samples_of(self.ours, self.heap.read)


@settings(max_examples=40)
@given(seeds)
def test_the_way_from_task_to_socket_is_found_wherever_it_lies(seed):
    kernel = Kernel(seed)
    searches = [kernel.ways(), kernel.ways()]
    assert the_way(searches) == Way(kernel.files_at, kernel.fdt_at, kernel.fd_at, kernel.back_at)
    assert [f.candidates for f in found_ways(searches)] == [(kernel.files_at,), (kernel.fdt_at,), (kernel.fd_at,)]


@settings(max_examples=20)
@given(seeds, st.integers(0, 2))
def test_one_descriptor_that_leads_elsewhere_ends_every_claim(seed, spoil):
    searches = [Kernel(seed).ways(spoil=spoil)]
    assert the_way(searches) is None
    assert all(f.candidates == () and f.evidence["samples"] for f in found_ways(searches))


def test_a_table_that_never_grew_shows_nothing():
    ways = Ways(Walk(LOWEST, bytes(8), bytes(8), bytes(8), [Table(64, {}, Tape())]))
    assert [f.evidence["samples"] for f in found_ways([ways])] == [0, 0, 0]


def test_the_size_of_a_table_stands_where_proc_says_it():
    kernel = Kernel(7)
    searches = [kernel.ways(growths=4), kernel.ways(growths=4)]
    found = search(find("max_fds"), table_samples(searches, the_way(searches)))
    assert found.candidates == (kernel.max_at,)
    assert found.evidence["distinct_values"] == 4


@settings(max_examples=10)
@given(seeds)
def test_whole_file_tables_are_concluded_again_from_what_was_read(seed):
    """From every descriptor to its socket, live; then from the tapes alone, when the kernel's memory is gone."""
    kernel = Kernel(seed, sockets=18)
    walks = [kernel.walk(), kernel.walk()]
    array, task = bytearray(8 * 64), bytearray(512)
    for fd, one in enumerate(kernel.ours):
        put(array, 8 * fd, one.file, 8)
    put(kernel.fdtable, kernel.fd_at, kernel.heap.place(array), 8)
    window = bytearray(1024)
    put(window, kernel.fdt_at, kernel.heap.place(kernel.fdtable), 8)
    put(task, kernel.files_at, kernel.heap.place(window), 8)
    ends = [End(one.kind, one.inode, fd, one.sock) for fd, one in enumerate(kernel.ours)]
    files = Files(walks, kernel.heap.place(task), None, ends, 512, FILE_SIZE, Tape.of(kernel.heap.read))
    live = conclude_files(files)
    files.tape.stop()
    kernel.heap.objects.clear()
    assert conclude_files(files) == live
    assert {f.field.member: f.candidates for f in live[0]} == {
        "files": (kernel.files_at,), "fdt": (kernel.fdt_at,), "fd": (kernel.fd_at,), "f_inode": (kernel.inode_at,),
        "ops": (kernel.ops_at,)}


def test_only_what_unsharing_changed_is_flipped():
    before, again, after = (bytearray(64) for _ in range(3))
    for window, values in ((before, (1, 2, 3)), (again, (1, 9, 3)), (after, (1, 5, 4))):
        for at, value in zip((0, 8, 16), values, strict=True):
            put(window, at, LOWEST + 64 * value, 8)
    assert flipped(before, again, after, LOWEST) == {16}


@settings(max_examples=30)
@given(seeds)
def test_pointers_of_sockets_and_files_are_where_they_were_put(seed):
    kernel = Kernel(seed, sockets=18)
    sockets, files = kernel.samples()
    inode, begins = search_inode(kernel.ours, sockets, files)
    sockets = [cut(s, begins) for s in sockets]
    assert (inode.candidates, begins) == ((kernel.inode_at,), kernel.inode_begins)
    assert search_ops(kernel.ours, sockets).candidates == (kernel.ops_at,)
    assert search(find("private_data"), files).candidates == (kernel.back_at,)
    assert {name: search(find(name), sockets).candidates for name in ("socket.sk", "socket.file", "socket.type")} == {
        "socket.sk": (kernel.sk_at,), "socket.file": (kernel.file_at,), "socket.type": (kernel.type_at,)}


def test_a_pointer_further_into_the_inode_is_not_the_one_to_the_inode():
    """As f_mapping, where a randomized struct inode has i_data before i_ino."""
    kernel = Kernel(11)
    free = next(at for at in range(0, 240, 8) if at not in (kernel.inode_at, kernel.back_at))
    deeper, level = (with_word(kernel, free, distance) for distance in (160, 128))
    assert search_inode(kernel.ours, kernel.samples()[0], deeper)[0].candidates == (kernel.inode_at,)
    assert len(search_inode(kernel.ours, kernel.samples()[0], level)[0].candidates) == 2


def test_a_socket_is_ours_by_the_number_of_its_inode():
    kernel = Kernel(13)
    one, other = kernel.ours[:2]
    window = Memory(kernel.heap.read, LOWEST).window
    assert is_his(one, window)
    assert not is_his(replace(one, socket=other.socket), window)
    assert not is_his(replace(one, socket=0), window)


def test_ops_are_nothing_without_kinds_to_tell_apart():
    kernel = Kernel(3, sockets=2)
    assert search_ops(kernel.ours, kernel.samples()[0]).candidates == ()


@pytest.mark.parametrize("same", [0, 17])
def test_one_socket_with_the_ops_of_another_kind_ends_them(same):
    kernel = Kernel(5, sockets=18)
    sockets, _ = kernel.samples()
    window = bytearray(sockets[same].window)
    put(window, kernel.ops_at, kernel.ops[KINDS[4]], 8)
    sockets[same] = type(sockets[same])(bytes(window), {})
    assert search_ops(kernel.ours, sockets).candidates == ()


def with_word(kernel, at, distance):
    made = []
    for one, sample in zip(kernel.ours, kernel.samples()[1], strict=True):
        window = bytearray(sample.window)
        put(window, at, one.socket + distance, 8)
        made.append(type(sample)(bytes(window), sample.values))
    return made
