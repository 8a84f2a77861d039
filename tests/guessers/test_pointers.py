import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guessers.memory import ReadFault
from guessers.pointers import SockSample, leads_to_netns, leads_to_socket, search_netns, search_socket
from guessers.search import Sample
from kcompat.fields import find

SK_SOCKET, SKC_NET, INUM = find("sk_socket"), find("skc_net"), find("net.ns.inum")
LOWEST = 0xFFFF_8000_0000_0000
seeds = st.integers(0, 2**48)


class Memory:
    """Kernel memory as {address: bytes}; what is not there faults, what is no address at all must not be asked for."""

    def __init__(self, rng):
        self.rng = rng
        self.objects = {}

    def place(self, data):
        while (address := 0xFFFF_8880_0000_0000 + self.rng.randrange(1 << 36) * 64) in self.objects:
            pass
        self.objects[address] = bytes(data)
        return address

    def read(self, address, size):
        assert LOWEST <= address < 0xFFFF_FFFF_FFFF_F000, f"{address:#x} is no kernel address"
        if address not in self.objects:
            raise ReadFault(address, 14)
        return self.objects[address][:size]


class Kernel:
    """Socks whose pointers stand at `socket_at` and `net_at`, and lead where the kernel's would."""

    def __init__(self, rng, *, namespaces=2, per_namespace=6, socket_at=96, net_at=48, inum_at=120, decoys=True):
        self.memory, self.socks = Memory(rng), []
        self.socket_at, self.net_at, self.inum_at = socket_at, net_at, inum_at
        shared = self.memory.place(rng.randbytes(4096))
        for _ in range(namespaces):
            inode = 4026531840 + rng.randrange(1 << 12)
            net = bytearray(rng.randbytes(4096))
            put(net, inum_at, inode, 4)
            address = self.memory.place(net)
            # A struct a namespace owns, that leads back to it and holds other numbers.
            sysctls = self.memory.place(address.to_bytes(8, "little") + rng.randbytes(4088))
            for _ in range(per_namespace):
                self.add(rng, inode, address, sysctls, shared, decoys)

    def add(self, rng, netns, net, sysctls, shared, decoys):
        window = bytearray(rng.randbytes(2048))
        address = self.memory.place(b"")
        inode = rng.randrange(20_000, 90_000)
        put(window, self.net_at, net, 8)
        put(window, self.socket_at, self.memory.place(socket_object(rng, address, inode)), 8)
        if decoys:
            put(window, 512, shared, 8)
            put(window, 520, sysctls, 8)
            put(window, 528, 0xFFFF_0006_0001_0AF0 + rng.randrange(64), 8)  # not canonical: reading it warns
            put(window, 536, self.memory.place(socket_object(rng, address, inode + 1)), 8)  # somebody else's inode
            put(window, 544, self.memory.place(socket_object(rng, address + 64, inode)), 8)  # somebody else's sock
            put(window, 552, 0xFFFF_8880_0000_0000 + rng.randrange(1 << 30), 8)  # freed: faults
        self.memory.objects[address] = bytes(window)
        self.socks.append(SockSample(Sample(bytes(window), {}), address, netns, inode))

    def search(self):
        found = [search_socket(self.socks, self.memory.read), *search_netns(self.socks, self.memory.read)]
        return {f.field: f for f in found}

    def candidates(self):
        return {field: found.candidates for field, found in self.search().items()}


def put(window, offset, value, width):
    window[offset:offset + width] = value.to_bytes(width, "little")


def socket_object(rng, sock, inode):
    """``struct socket_alloc``: a socket that leads back to its sock, with the inode of its file behind."""
    made = bytearray(rng.randbytes(1024))
    put(made, 24, sock, 8)
    put(made, 192, inode, 8)
    return made


@settings(max_examples=60)
@given(seeds)
def test_pointers_are_found_where_they_lead_home(seed):
    rng = random.Random(seed)
    socket_at, net_at = rng.sample(range(0, 500, 8), 2)
    inum_at = rng.randrange(0, 4092, 4)
    kernel = Kernel(rng, socket_at=socket_at, net_at=net_at, inum_at=inum_at)
    assert kernel.candidates() == {SK_SOCKET: (socket_at,), SKC_NET: (net_at,), INUM: (inum_at,)}


@settings(max_examples=40)
@given(seeds)
def test_without_the_true_pointers_nothing_is_found(seed):
    """They lie past the end of what was read; the decoys are all there."""
    kernel = Kernel(random.Random(seed), socket_at=1024, net_at=1032)
    kernel.socks = [SockSample(Sample(s.sample.window[:1000], {}), s.address, s.netns, s.inode) for s in kernel.socks]
    assert kernel.candidates() == {SK_SOCKET: (), SKC_NET: (), INUM: ()}


def test_two_pointers_to_the_same_socket_are_both_named():
    kernel = Kernel(random.Random(1))
    kernel.socks = [SockSample(Sample(s.sample.window[:600] + s.sample.window[96:104] + s.sample.window[608:], {}),
                               s.address, s.netns, s.inode) for s in kernel.socks]
    assert kernel.candidates()[SK_SOCKET] == (96, 600)


def test_one_namespace_is_thinner_evidence_than_two():
    one, two = (Kernel(random.Random(2), namespaces=n).search()[SKC_NET] for n in (1, 2))
    assert one.evidence["expected_false_positives"] > 1e-4
    assert two.evidence["expected_false_positives"] < 1e-9


def test_a_sock_of_another_namespace_under_a_false_name_ends_the_answer():
    kernel = Kernel(random.Random(3))
    first = kernel.socks[0]
    kernel.socks[0] = SockSample(first.sample, first.address, kernel.socks[-1].netns, first.inode)
    assert kernel.candidates()[SKC_NET] == ()


def test_held_out_socks_refute():
    """The pointer is right in the six that are searched, and wrong in one of the others."""
    kernel = Kernel(random.Random(4))
    window = bytearray(kernel.socks[11].sample.window)
    put(window, 96, 0, 8)
    kernel.socks[11] = SockSample(Sample(bytes(window), {}), *(getattr(kernel.socks[11], n)
                                                               for n in ("address", "netns", "inode")))
    found = kernel.search()[SK_SOCKET]
    assert found.candidates == ()
    assert found.evidence["refuted_by_held_out"] == [96]


def test_without_socks_nothing_is_claimed():
    assert search_socket([], None).candidates == ()
    assert [f.candidates for f in search_netns([], None)] == [(), ()]


@pytest.mark.parametrize(("at", "leads"), [(96, True), (104, False), (528, False), (536, False), (552, False)])
def test_a_single_sock_confirms_or_refutes_sk_socket(at, leads):
    kernel = Kernel(random.Random(5))
    assert leads_to_socket(kernel.socks[0], at, kernel.memory.read) is leads


@pytest.mark.parametrize(("at", "inum", "leads"), [
    (48, 120, True), (48, None, True), (48, 124, False), (56, None, False), (512, None, False), (528, None, False)])
def test_a_single_sock_confirms_or_refutes_skc_net(at, inum, leads):
    kernel = Kernel(random.Random(6))
    assert leads_to_netns(kernel.socks[0], at, inum, kernel.memory.read) is leads
