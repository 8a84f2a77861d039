"""What the guess sends is taken: an ICMP error would look for its route by a key that is the packet's own, turned."""

import random
import socket
from pathlib import Path

import pytest

from guessers.experiments import netns_inode
from guessers.namespace import Netns, in_own_thread
from guessers.stimulus import Addresses, Stimulus
from tests.kernel import signs


def errors_sent():
    """How many ICMP errors this thread's namespace has sent, of either family."""
    names, values = (line.split()[1:] for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
                     if line.startswith("Icmp:"))
    counted = dict(zip(names, map(int, values), strict=True))
    six = Path("/proc/thread-self/net/snmp6")
    if six.exists():
        counted |= {name: int(value) for name, value in map(str.split, six.read_text().splitlines())}
    return {name: count for name, count in counted.items() if count and name in (
        "OutDestUnreachs", "OutParmProbs", "Icmp6OutDestUnreachs", "Icmp6OutParmProblems")}


@pytest.mark.parametrize("family", [socket.AF_INET, *([socket.AF_INET6] if signs.IPV6 else [])])
def test_nothing_that_is_sent_is_answered_by_an_error(family):
    if not signs.NET_NS:
        pytest.skip("this kernel has no network namespaces")

    def body(_):
        home = Netns()
        fresh = Netns.fresh()
        rng = random.Random(7)
        stimulus = Stimulus(rng, Addresses(rng, private=True, ipv6=signs.IPV6))
        try:
            assert netns_inode() == fresh.inode
            for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
                for _ in range(8):
                    local, remote = stimulus.addresses.pair(family)
                    end = stimulus.raw(family) if kind == socket.SOCK_RAW else stimulus.bind(
                        stimulus.open(family, kind), local)
                    end.sock.sendto(b"kcompat", stimulus.receiver(end, remote))
            return errors_sent()
        finally:
            stimulus.close()
            home.enter()
            home.close()
            fresh.close()

    assert not in_own_thread(body)
