"""The last proof before anything is published: our own connections come out of the loaded programs as they were."""

from __future__ import annotations

import random
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from collector.addresses import V4_MAPPED
from collector.flows import FlowDelta
from guessers.namespace import Netns, add_ipv6, elsewhere, in_own_thread, wait_until_bindable
from kcompat.errors import KcompatError
from kcompat.fields import Field, find

# Until the last packet is there, which travels in software interrupts: on a machine kept busy that can take seconds.
_PATIENCE_S, _PAUSE_S = 5.0, 0.02
# What is there and wrong does not become right by waiting, but for a moment in which both ends are being told apart.
_CERTAIN_S = 1.0
STAR = 65535  # what the programs make of an ephemeral port where any one stands for all
_FIRST_PORT, _LAST_PORT = 1024, 32768


class Sighting(NamedTuple):
    """What a socket did, by itself or by the programs. Addresses are 16 bytes, v4-mapped for IPv4."""

    transport: str
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    netns: int
    read: int
    written: int


# What may be seen wrong, and the fields that are then at fault, for IPv4 and for IPv6. Nothing seen: who it belongs to.
BLAMED_FOR_ENDS = {
    "local": (("skc_rcv_saddr",), ("skc_v6_rcv_saddr",)),
    "remote": (("skc_daddr",), ("skc_v6_daddr",)),
    "local_port": (("skc_num",), ("skc_num",)),
    "remote_port": (("skc_dport",), ("skc_dport",)),
    "netns": (("skc_net", "net.ns.inum"), ("skc_net", "net.ns.inum")),
}
_BLAMED = BLAMED_FOR_ENDS | {
    "read": (("copied_seq",), ("copied_seq",)),
    "written": (("write_seq",), ("write_seq",)),
}
_UNSEEN = ("skc_family", "sk_protocol", "skc_state")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that came out wrong, and the fields that would explain it."""

    words: str
    fields: tuple[Field, ...]
    time_mends: bool = False
    """Whether it may only not have been seen yet."""


@dataclass(frozen=True, slots=True)
class Proof:
    """How it went; `others` is what everybody else did meanwhile, to be published with the first interval."""

    faults: tuple[Fault, ...]
    others: tuple[FlowDelta, ...]


class Refuted(KcompatError):
    """The programs see other things than what happened: their dataset stays off. `fields` are to be quarantined."""

    exit_code = 3

    def __init__(self, dataset: str, faults: tuple[Fault, ...]) -> None:
        self.fields = tuple(dict.fromkeys(field for fault in faults for field in fault.fields))
        super().__init__(f"{dataset} is off: a connection of our own came out wrong: "
                         f"{'; '.join(fault.words for fault in faults)}")


def prove(flush: Callable[[], list[FlowDelta]], has_ipv6: bool) -> Proof:
    """Makes known connections and looks for them in what `flush` gives, until all came out right or time is up.

    They are made in a network namespace of their own where one can be had, by a thread whose name tells them from
    everybody else's: who did what does not hang on the offsets that are put to the proof.
    """
    name, done = in_own_thread(lambda nonce: (nonce.decode(), tuple(_traffic(random.Random(nonce), has_ipv6))))
    seen: dict[tuple[str, bytes, int, bytes, int, int], list[int]] = defaultdict(lambda: [0, 0])
    others: list[FlowDelta] = []
    begun = time.monotonic()
    while True:
        for delta in flush():
            if delta.process_name == name:
                counts = seen[(delta.transport, delta.local, delta.local_port, delta.remote, delta.remote_port,
                               delta.netns)]
                counts[0] += delta.bytes_read
                counts[1] += delta.bytes_written
            else:
                others.append(delta)
        faults = tuple(compare(done, [Sighting(*key, *counts) for key, counts in seen.items()]))
        patience_s = _PATIENCE_S if all(fault.time_mends for fault in faults) else _CERTAIN_S
        if not faults or time.monotonic() > begun + patience_s:
            return Proof(faults, tuple(others))
        time.sleep(_PAUSE_S)


def compare(done: Sequence[Sighting], seen: Sequence[Sighting]) -> Iterator[Fault]:
    """What is wrong with what was seen, given what was done: pure. What is most alike is taken for the same socket.

    But not what another socket did, between the very ends: then this one's is not there yet.
    """
    for sighting in done:
        others = [other for other in done if other is not sighting]
        alike = [s for s in seen if s.transport == sighting.transport
                 and not any(_has_ends(other, s) for other in others)]
        best = max(alike, key=lambda s: -len(list(_differences(sighting, s))), default=None)
        if best is None:
            yield Fault(f"no {sighting.transport} flow of it was seen", tuple(map(find, _UNSEEN)), True)
            continue
        for what in _differences(sighting, best):
            is_v6 = sighting.local[:12] != V4_MAPPED
            told = f"{what} is {_told(getattr(best, what))}, not {_told(getattr(sighting, what))}"
            # UDP is counted by what calls return, and its sockets are seen only with their first packet.
            blamed = () if sighting.transport == "udp" and what in ("read", "written") else _BLAMED[what][is_v6]
            yield Fault(f"{sighting.transport} {told}", tuple(map(find, blamed)), what in ("read", "written"))


def _has_ends(done: Sighting, seen: Sighting) -> bool:
    return done.transport == seen.transport and not BLAMED_FOR_ENDS.keys() & set(_differences(done, seen))


def _differences(done: Sighting, seen: Sighting) -> Iterator[str]:
    for what in _BLAMED:
        same = getattr(done, what) == getattr(seen, what)
        if not same and not (what == "local_port" and seen.local_port == STAR):
            yield what


def _told(value: bytes | int) -> str:
    if isinstance(value, int):
        return str(value)
    return socket.inet_ntop(socket.AF_INET6, value).removeprefix("::ffff:")


def _traffic(rng: random.Random, has_ipv6: bool) -> Iterator[Sighting]:
    """TCP and UDP between random loopback addresses: what each of the sockets did."""
    with elsewhere():
        netns = netns_here()
        local, remote = (f"127.{rng.randrange(1, 255)}.{rng.randrange(256)}.{rng.randrange(1, 255)}" for _ in "ab")
        yield from _connection(rng, netns, socket.AF_INET, local, remote)
        yield from _datagrams(rng, netns, local, remote)
        if not has_ipv6:
            return
        local, remote = (f"fd00::{rng.randrange(1, 65536):x}:{rng.randrange(1, 65536):x}" for _ in "ab")
        with suppress(OSError):
            for address in (local, remote):
                add_ipv6(address)
            if wait_until_bindable(local) and wait_until_bindable(remote):
                yield from _connection(rng, netns, socket.AF_INET6, local, remote)


def netns_here() -> int:
    """The namespace this thread is in; 0 on a kernel that has none, as the programs say too."""
    try:
        here = Netns()
    except OSError:
        return 0
    here.close()
    return here.inode


def _connection(rng: random.Random, netns: int, family: int, local: str, remote: str) -> Iterator[Sighting]:
    up, down = rng.randrange(1000, 30_000), rng.randrange(1000, 30_000)
    with bound(rng, family, socket.SOCK_STREAM, remote) as listener, \
            bound(rng, family, socket.SOCK_STREAM, local) as client:
        listener.listen()
        client.connect(listener.getsockname())
        with listener.accept()[0] as server:
            for sender, receiver, size in ((client, server, up), (server, client, down)):
                sender.sendall(bytes(size))
                left = size
                while left:
                    left -= len(receiver.recv(left))
            ends = ends_of(client)
    yield Sighting("tcp", *ends, netns, down, up)
    yield Sighting("tcp", *ends[2:], *ends[:2], netns, up, down)


def _datagrams(rng: random.Random, netns: int, local: str, remote: str) -> Iterator[Sighting]:
    up, down = rng.randrange(100, 1000), rng.randrange(100, 1000)
    with bound(rng, socket.AF_INET, socket.SOCK_DGRAM, remote) as server, \
            bound(rng, socket.AF_INET, socket.SOCK_DGRAM, local) as client:
        client.connect(server.getsockname())
        client.send(bytes(up))
        _, sender = server.recvfrom(up)
        server.sendto(bytes(down), sender)
        client.recvfrom(down)
        ends = ends_of(client)
    yield Sighting("udp", *ends, netns, down, up)
    yield Sighting("udp", *ends[2:], *ends[:2], netns, up, down)


def bound(rng: random.Random, family: int, kind: int, address: str) -> socket.socket:
    """A socket on a port of our own choice: the kernel's own choice would be ephemeral, which the programs star."""
    made = socket.socket(family, kind)
    made.settimeout(_PATIENCE_S)
    for _ in range(20):
        try:
            made.bind((address, rng.randrange(_FIRST_PORT, _LAST_PORT)))
        except OSError:
            continue
        return made
    made.close()
    raise OSError(f"no free port on {address}")


def ends_of(sock: socket.socket) -> tuple[bytes, int, bytes, int]:
    (local, local_port), (remote, remote_port) = sock.getsockname()[:2], sock.getpeername()[:2]
    return _packed(local), local_port, _packed(remote), remote_port


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address if ":" in address else f"::ffff:{address}")
