"""Where datagrams of sockets go and come from that are connected to nobody: told by the cgroups' root, or by calls."""

import os
import random
import socket
import struct
from collections import Counter

import pytest

from collector.config import Options
from collector.datasets.hooks import attached
from collector.datasets.netflow import Netflow
from collector.datasets.netflow_hooks import SENDERS
from collector.flows import aggregate
from guessers.namespace import Netns, in_own_thread
from kcompat import attach
from kcompat.errors import Missing, Unsupported
from kcompat.kernel import Kernel
from kcompat.version import running_version_code
from tests.kernel import signs

pytestmark = [pytest.mark.thorough,
              pytest.mark.skipif(not signs.NET_NS, reason="without network namespaces no traffic is nobody else's")]
OPTIONS = Options("box", interval_s=1, loopback=True)
SERVER, ONE, OTHER = "127.0.0.9", "127.0.0.7", "127.0.0.8"


@pytest.fixture(scope="module", params=["cgroups", "calls"])
def told(request, oracle):
    """A running netflow, and whether cgroups tell it of senders."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "calls":
            patch.setattr(attach, "_cgroup_root", none_to_be_seen)
        try:
            made = Netflow(oracle, OPTIONS, running_version_code(Kernel.running().release))
        except Unsupported as error:
            pytest.skip(str(error))
    with made:
        by_cgroups = attached(made.loaded, SENDERS)
        if by_cgroups != (request.param == "cgroups"):
            pytest.skip("this kernel's cgroups do not tell which thread receives, or are not mounted")
        yield made, by_cgroups


def none_to_be_seen():
    raise Missing("not in this test")


def read_by_peer(netflow, traffic):
    """What `traffic` made the server read, by address of the sender."""
    return by_peer(netflow, traffic, "bytes_read", SERVER)


def by_peer(netflow, traffic, field, local):
    def body(_):
        home = Netns()
        namespace = Netns.fresh()
        try:
            with bound(SERVER) as server, bound(ONE) as one, bound(OTHER) as other:
                traffic(server, one, other)
            return namespace.inode, netflow.flush()
        finally:
            home.enter()
            namespace.close()
            home.close()

    netflow.flush()
    netns, deltas = in_own_thread(body)
    found = Counter()
    for record in aggregate([d for d in deltas if d.netns == netns], OPTIONS, 1):
        if record.tags["src_ip"] == local and record.tags["pid"] == str(os.getpid()):
            found[record.tags["dst_ip"]] += record.fields[field]
    return +found


def bound(address):
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(10)
    made.bind((address, 0))
    return made


def test_each_has_its_own(told):
    rng = random.Random(9)
    sent = Counter()

    def traffic(server, *clients):
        for _ in range(40):
            client = rng.choice(clients)
            size = rng.randrange(1, 500)
            sent[client.getsockname()[0]] += client.sendto(bytes(size), server.getsockname())
            server.recvfrom(600) if rng.random() < 0.5 else server.recvmsg(600)

    assert read_by_peer(told[0], traffic) == sent


def test_what_is_only_looked_at_or_empty_leaves_no_sender_behind(told):
    """The next reader does not ask, on a socket that spoke to one only: nobody else is taken for that one."""
    def traffic(server, one, other):
        server.sendto(b"first", one.getsockname())
        other.sendto(b"", server.getsockname())
        server.recvfrom(10)
        one.sendto(b"1" * 10, server.getsockname())
        server.recv(100)
        other.sendto(b"2" * 200, server.getsockname())
        server.recvfrom(300, socket.MSG_PEEK)
        server.recvfrom(300)
        one.sendto(b"1" * 1000, server.getsockname())
        server.recvfrom(2000, socket.MSG_PEEK)
        server.recv(2000)

    assert read_by_peer(told[0], traffic) == {ONE: 1010, OTHER: 200}


def test_one_that_cannot_be_known_is_counted_as_lost(told):
    netflow, _ = told

    def traffic(server, one, other):
        server.sendto(b"both", one.getsockname())
        server.sendto(b"both", other.getsockname())
        one.sendto(b"1" * 10, server.getsockname())
        server.recv(100)

    netflow.flush()
    before = netflow.losses["udp peers"]
    assert read_by_peer(netflow, traffic) == {}
    assert netflow.losses["udp peers"] > before


def test_what_comes_back_by_the_error_queue_was_not_received(told):
    def traffic(server, one, other):
        one.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        with bound(OTHER) as gone:
            nobody = gone.getsockname()
        one.sendto(b"r" * 333, nobody)
        one.recvmsg(1000, 1000, socket.MSG_ERRQUEUE)
        one.sendto(b"1" * 10, server.getsockname())
        server.recvfrom(100)
        server.sendto(b"2" * 20, one.getsockname())
        one.recvfrom(100)
        read.update(bytes=one.getsockname()[1])

    read = Counter()
    assert read_by_peer(told[0], traffic) == {ONE: 10}


def test_each_goes_where_it_was_sent(told):
    """Also past the peer that the socket is connected to, and what cannot be sent goes nowhere."""
    rng = random.Random(11)
    sent = Counter()

    def traffic(server, one, other):
        targets = [other.getsockname(), server.getsockname()]
        for _ in range(40):
            target = rng.choice(targets)
            sent[target[0]] += one.sendto(bytes(rng.randrange(1, 500)), target)
        one.connect(other.getsockname())
        sent[OTHER] += one.send(b"c" * 1000)
        sent[SERVER] += one.sendto(b"p" * 2000, server.getsockname())
        with pytest.raises(OSError, match=r"unreachable|denied"):
            one.sendto(b"n" * 4000, ("198.51.100.1", 9))
        sent[OTHER] += one.send(b"c" * 8000)
        # With a control message the kernel looks for a route anew, and tells of an address that nobody gave.
        sent[OTHER] += one.sendmsg([b"m" * 16000], [(socket.IPPROTO_IP, socket.IP_TOS, struct.pack("i", 16))])

    assert by_peer(told[0], traffic, "bytes_written", ONE) == sent


def test_what_is_sent_to_nobody_in_particular_stays_at_home(told):
    netflow, by_cgroups = told

    def traffic(server, one, other):
        here = one.getsockname()
        one.sendto(b"h" * 77, ("0.0.0.0", here[1]))
        assert one.recvfrom(100) == (b"h" * 77, here)

    found = by_peer(netflow, traffic, "bytes_written", ONE)
    # A route to this machine itself is not looked up where a raw tracepoint would tell of it.
    assert found == ({ONE: 77} if by_cgroups or netflow.backend == "kprobe" else {})
