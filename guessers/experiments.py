"""The experiments of a guess: sockets of every kind, in namespaces of our own, each in states worth seeing."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from guessers.absence import has_ipv6
from guessers.conclusions import DEVICE, NAMESPACE, OWNER, SOCKET, follow_now
from guessers.descriptors import collect_files
from guessers.facts import TCP_CLOSE, TCP_SYN_RECV, plant_numbers
from guessers.haul import Haul
from guessers.memory import KernelMemory
from guessers.namespace import NETNS, Netns
from guessers.packets import collect_packets
from guessers.sampling import Sampler
from guessers.sending import collect_messages
from guessers.stimulus import Addresses, End, Stimulus
from kcompat.fields import find

_CONNECTIONS = 6  # a family and round; both ends are sampled
_RAW = 12  # so many that the interface of their routing keys, a toss of a coin each, shows a pattern no other place has
_UNIX = 12


def collect(memory: KernelMemory, rng: random.Random, haul: Haul, *, whole: bool) -> None:
    """One round of experiments into `haul`, in private namespaces where that is allowed.

    A `whole` round also visits a second namespace and our own, and follows pointers: that must happen here, while
    the sockets and namespaces they lead to are alive. The thread ends in the namespace it came from.
    """
    home = Netns() if NETNS.exists() else None
    opened = [home] if home else []
    try:
        _collect_here(memory, rng, haul, _fresh(opened), follow=whole)
        if whole and home:
            if second := _fresh(opened):
                _collect_bare(memory, rng, haul, second, packets=True)
            home.enter()
            _collect_bare(memory, rng, haul, home)
            follow_now(haul, NAMESPACE, memory.read)
        if whole:
            follow_now(haul, DEVICE, memory.read)
            follow_now(haul, OWNER, memory.read)
    finally:
        if home:
            home.enter()
        for namespace in opened:
            namespace.close()


def _fresh(opened: list[Netns]) -> Netns | None:
    """A new namespace, entered; None where we may not have one and stay where we are."""
    with suppress(OSError):
        opened.append(Netns.fresh())
        return opened[-1]
    return None


def _collect_here(memory: KernelMemory, rng: random.Random, haul: Haul, private: Netns | None, *,
                  follow: bool) -> None:
    ipv6 = has_ipv6()
    stimulus = Stimulus(rng, Addresses(rng, private=private is not None, ipv6=ipv6))
    sampler = Sampler(memory, stimulus, netns_inode(), haul)
    families = (socket.AF_INET, socket.AF_INET6) if ipv6 else (socket.AF_INET,)
    try:
        for family in families:
            collect_tcp(sampler, rng, family, _CONNECTIONS)
            collect_closed(sampler, rng, family)
            if follow:
                collect_udp(sampler, family)
            collect_raw(sampler, family)
        if follow and not ipv6:
            collect_unix(sampler)
        if ipv6 and not private:
            collect_unrouted(sampler)
        if follow:
            found, = follow_now(haul, SOCKET, memory.read)
            with _tolerant(haul, "a file table of our own"):
                collect_files(sampler, rng, families, found.candidates)
            with _tolerant(haul, "a message"):
                collect_messages(sampler, rng)
        collect_packets(sampler, rng, private=private is not None)
    finally:
        haul.connections += stimulus.connections
        stimulus.close()


def _collect_bare(memory: KernelMemory, rng: random.Random, haul: Haul, namespace: Netns, *,
                  packets: bool = False) -> None:
    stimulus = Stimulus(rng, Addresses(rng, private=False, ipv6=False))
    sampler = Sampler(memory, stimulus, namespace.inode, haul)
    try:
        collect_bare(sampler)
        if packets:
            collect_packets(sampler, rng, private=True, whole=False)
    finally:
        stimulus.close()


def netns_inode() -> int:
    """The number of the namespace this thread is in; 0 on a kernel without namespaces."""
    return NETNS.stat().st_ino if NETNS.exists() else 0


def collect_tcp(sampler: Sampler, rng: random.Random, family: int, connections: int) -> None:
    """Connections with random histories, both ends sampled, their listeners too."""
    for _ in range(connections):
        with _tolerant(sampler.haul, "a TCP connection"):
            _sample_connection(sampler, rng, family)


def _sample_connection(sampler: Sampler, rng: random.Random, family: int) -> None:
    stimulus = sampler.stimulus
    local, remote = stimulus.addresses.pair(family)
    server = stimulus.bind(stimulus.open(family, socket.SOCK_STREAM), remote)
    server.label += " listening"
    listening = sampler.watch(server.sock.listen)
    client = stimulus.bind(stimulus.open(family, socket.SOCK_STREAM), local)
    target = server.sock.getsockname()[:2]
    made: list[End] = []
    sampler.take_flow(client, lambda: made.append(stimulus.connect(client, server)),
                      client.sock.getsockname()[:2], target)
    accepted = made[0]
    states = [call.args for call in sampler.memory.calls() if call.hook.name == "set_state"]
    stimulus.walk(client, accepted, rng.randrange(6, 16))
    for end, seen in ((client, _entering(states, TCP_CLOSE)), (accepted, _entering(states, TCP_SYN_RECV)),
                      (server, listening[0][0] if listening else None)):
        # A hook that names the socket itself is better than a transition seen: those may be a neighbour's.
        sampler.take(end, None if sampler.direct else seen)


def _entering(states: list[tuple[int, ...]], old: int) -> int | None:
    """The sock of the first transition out of state `old`: ``inet_sock_set_state(sk, oldstate, newstate)``."""
    return next((sk for sk, oldstate, *_ in states if oldstate == old), None)


def collect_closed(sampler: Sampler, rng: random.Random, family: int, turns: int = 2) -> None:
    """Sockets that never connect and have sequence numbers all the same: those alone are not equal to others."""
    for _ in range(turns if sampler.direct else 0):  # no transition names a socket that makes none
        with _tolerant(sampler.haul, "a socket in repair"):
            stimulus = sampler.stimulus
            end = stimulus.bind(stimulus.open(family, socket.SOCK_STREAM), stimulus.addresses.local(family))
            plant_numbers(end.sock, (rng.randrange(1 << 24, 1 << 32), rng.randrange(1 << 24, 1 << 32)))
            end.label += " closed"
            sampler.take(end)


def collect_udp(sampler: Sampler, family: int, turns: int = 3) -> None:
    """Bound, connected, disconnected; and bound to multicast: that alone tells inet_saddr from skc_rcv_saddr."""
    for _ in range(turns):
        with _tolerant(sampler.haul, "a UDP socket"):
            _sample_datagrams(sampler, family)
    for _ in range(turns):
        with _tolerant(sampler.haul, "a multicast socket"):
            stimulus = sampler.stimulus
            end = stimulus.bind(stimulus.open(family, socket.SOCK_DGRAM), stimulus.addresses.multicast(family))
            end.label += " multicast"
            sampler.take(end)


def _sample_datagrams(sampler: Sampler, family: int) -> None:
    stimulus = sampler.stimulus
    local, remote = stimulus.addresses.pair(family)
    end = stimulus.bind(stimulus.open(family, socket.SOCK_DGRAM), local)
    target = stimulus.receiver(end, remote)
    sampler.take_flow(end, lambda: end.sock.sendto(b"kcompat", target), end.sock.getsockname()[:2], target)
    sampler.take(end)
    end.sock.connect(target)
    stimulus.plant(end.sock)
    sampler.take(end)
    stimulus.disconnect(end)
    sampler.take(end)


def collect_raw(sampler: Sampler, family: int) -> None:
    """Raw sockets: any protocol number we like, in the socket and in the routing key."""
    for _ in range(_RAW):
        with _tolerant(sampler.haul, "a raw socket"):
            _sample_raw(sampler, family)


def _sample_raw(sampler: Sampler, family: int) -> None:
    end = sampler.stimulus.raw(family)
    sampler.take(end)
    target = sampler.stimulus.receiver(end, sampler.stimulus.addresses.local(family))
    sampler.take_flow(end, lambda: end.sock.sendto(b"kcompat", target), end.sock.getsockname()[:2], target)


def collect_unix(sampler: Sampler) -> None:
    """Sockets that are not the internet's: without IPv6 nothing else sets skc_family apart from any other 2."""
    for _ in range(_UNIX):
        with _tolerant(sampler.haul, "a Unix socket"):
            end = sampler.stimulus.open(socket.AF_UNIX, socket.SOCK_DGRAM)
            end.label = "Unix datagram"
            sampler.take(end)


def collect_unrouted(sampler: Sampler) -> None:
    """IPv6 routing keys where no IPv6 address is ours: a connect(2) of these looks for a route and sends nothing."""
    for number in range(2 * _RAW):
        with _tolerant(sampler.haul, "a socket with an address not ours"):
            _sample_unrouted(sampler, socket.SOCK_DGRAM if number % 2 else socket.SOCK_RAW)


def _sample_unrouted(sampler: Sampler, kind: int) -> None:
    end, target = sampler.stimulus.unrouted(kind)

    def look_for_route() -> None:
        with suppress(OSError):
            end.sock.connect(target)

    sampler.take_flow(end, look_for_route, end.sock.getsockname()[:2], target)


def collect_bare(sampler: Sampler) -> None:
    """Sockets that talk to nobody: for another namespace's sake. It may be one whose loopback is down.

    There 127/8 counts as a broadcast address, and inet_saddr stays 0 as for multicast.
    """
    stimulus = sampler.stimulus
    for _ in range(3):
        with _tolerant(sampler.haul, "a socket that listens"):
            end = stimulus.bind(stimulus.open(socket.AF_INET, socket.SOCK_STREAM),
                                stimulus.addresses.local(socket.AF_INET))
            calls = sampler.watch(end.sock.listen)
            sampler.take(end, None if sampler.direct or not calls else calls[0][0],
                         untold=frozenset({find("inet_saddr")}))


@contextmanager
def _tolerant(haul: Haul, what: str) -> Iterator[None]:
    """An experiment the system refuses (a capability taken away, a firewall) is counted; the others go on."""
    try:
        yield
    except OSError as error:
        haul.miss(f"{what} failed: {error.strerror or error}")
