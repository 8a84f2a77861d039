"""More than there is room for: what finds none is counted, what found some is exact, and then all is as before."""

import os
import resource
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from collector.datasets.httpflow import _RING, Httpflow
from collector.datasets.netflow import Netflow
from collector.flows import aggregate
from kcompat.errors import Unsupported
from kcompat.kernel import Kernel
from kcompat.version import running_version_code
from tests.kernel.tcp_states import settle
from tests.kernel.test_netflow import OPTIONS, in_namespace, pair

pytestmark = [pytest.mark.kernel, pytest.mark.thorough, pytest.mark.skipif(os.geteuid() != 0, reason="not root")]

BOUND = 1024
CODE = running_version_code(Kernel.running().release)


def ours(netflow, options):
    return [r for r in aggregate(netflow.flush(), options, 1) if r.tags["pid"] == str(os.getpid())]


@pytest.fixture(autouse=True)
def descriptors():
    """Enough for all those sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * BOUND)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_sockets_past_the_bound_are_counted_and_the_next_ones_are_followed(oracle):
    """Both ends of each connection are here. Of those that found no room nothing is made up."""
    options = replace(OPTIONS, max_sockets=BOUND)

    def connections(number):
        with ExitStack() as stack:
            ends = [stack.enter_context(end) for _ in range(number) for end in pair()]
            for end in ends:
                end.sendall(b"x" * 10)
            records = ours(netflow, options)
        settle()
        return records + ours(netflow, options)

    with Netflow(oracle, options, CODE) as netflow:
        before = dict(netflow.losses)
        records = in_namespace(lambda: connections(BOUND))
        lost = netflow.losses["tcp sockets"] - before["tcp sockets"]
        after = in_namespace(lambda: connections(20))
        more = netflow.losses["tcp sockets"] - before["tcp sockets"]

    assert lost > 0
    assert sum(r.fields["bytes_written"] for r in records) <= 2 * BOUND * 10
    # What had room was counted: the map holds the bound, others' sockets among it.
    assert sum(r.fields["tcp_established"] for r in records) > 0
    assert sum(r.fields["bytes_written"] for r in after) == 2 * 20 * 10 and more == lost


def test_pieces_that_find_the_ring_full_are_counted_and_the_next_requests_are_seen(oracle):
    """A pipeline goes to user space, which has no time here. What a ring lost is told with what it takes next."""
    saw = []
    try:
        dataset = Httpflow(oracle, OPTIONS, CODE, saw.append)
    except Unsupported as error:
        pytest.skip(str(error))

    cpu = min(os.sched_getaffinity(0))

    def exchange(requests):
        os.sched_setaffinity(0, {cpu})  # of this thread: one ring is filled, and says so
        client, server = pair()
        with client, server:
            for _ in range(requests):
                client.sendall(b"GET /full HTTP/1.1\r\nHost: a\r\n\r\n" * 40)
                while server.recv(1 << 16)[-4:] != b"\r\n\r\n":
                    pass
                server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * 40)
                while client.recv(1 << 16)[-4:] != b"\r\n\r\n":
                    pass

    # Four times what the ring holds of pieces of this size, one for each of two calls.
    too_many = 4 * _RING // 512
    try:
        before = dataset.losses
        with dataset._lock:  # as if this machine had no time for us
            in_namespace(lambda: exchange(too_many))
        dataset.flush()
        counted = sum(one.times for one in saw if one.exchange.path == "/full")
        saw.clear()
        in_namespace(lambda: exchange(1))
        deadline = time.monotonic() + 30
        while sum(one.times for one in saw if one.exchange.path == "/full") < 2 * 40:
            assert time.monotonic() < deadline
            dataset.flush()
        lost = dataset.losses["http pieces"] - before["http pieces"]
    finally:
        dataset.close()
    assert lost > 0 and counted < 2 * 40 * too_many
