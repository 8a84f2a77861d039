"""The last proof before httpflow publishes: requests of our own come out of the loaded programs as they were made."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from collector.addresses import V4_MAPPED
from collector.canary import BLAMED_FOR_ENDS, STAR, Fault, bound, ends_of, netns_here
from collector.http_exchanges import Seen
from guessers.namespace import add_ipv6, elsewhere, in_own_thread, wait_until_bindable
from kcompat.fields import Field, find

# Until it is all there; and how long what is there and wrong may still become right.
_PATIENCE_S, _PAUSE_S = 5.0, 0.02


class Asked(NamedTuple):
    """One end's view of one exchange, by itself or by the programs."""

    asks: bool
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    netns: int
    method: str
    path: str
    status_code: int
    http_version: str


_UNSEEN = ("skc_family", "sk_protocol")
# What says where the bytes lie, for the hooks that ask the message.
_UNSEEN_BY_KPROBES = (*_UNSEEN, "copied_seq", "msghdr.msg_iter.iov", "msghdr.msg_iter.count", "msghdr.msg_iter.nr_segs")


def prove(flush: Callable[[], Sequence[Seen]], has_ipv6: bool, backend: str) -> tuple[tuple[Fault, ...], list[Seen]]:
    """What is wrong with what `flush` gives of known requests, once it is all there or time is up; and what others did.

    They are made in a network namespace of their own where one can be had, by a thread whose name tells them from
    everybody else's.
    """
    name, made = in_own_thread(lambda nonce: (nonce.decode(), tuple(_traffic(random.Random(nonce), has_ipv6))))
    unseen = tuple(map(find, _UNSEEN_BY_KPROBES if backend == "kprobe" else _UNSEEN))
    own: list[Asked] = []
    others: list[Seen] = []
    begun = time.monotonic()
    while True:
        for seen in flush():
            if seen.ends.process_name == name:
                own += [_asked(seen)] * seen.times
            else:
                others.append(seen)
        faults = tuple(compare(made, own, unseen))
        if not faults or time.monotonic() > begun + _PATIENCE_S:
            return faults, others
        time.sleep(_PAUSE_S)


def compare(made: Sequence[Asked], seen: Sequence[Asked], unseen: tuple[Field, ...] = ()) -> Iterator[Fault]:
    """What is wrong with what was seen, given what was made: pure. Each path is one exchange's own."""
    for asked in made:
        side = "request" if asked.asks else "answer"
        alike = [s for s in seen if s.path == asked.path and s.asks == asked.asks]
        if not alike:
            yield Fault(f"no {side} of {asked.method} {asked.path} was seen", unseen, True)
        elif len(alike) > 1:
            yield Fault(f"the {side} of {asked.method} {asked.path} was seen {len(alike)} times", unseen)
        else:
            for what in _differences(asked, alike[0]):
                is_v6 = asked.local[:12] != V4_MAPPED
                yield Fault(f"{what} of {asked.method} {asked.path} came out wrong",
                            tuple(map(find, BLAMED_FOR_ENDS[what][is_v6])) if what in BLAMED_FOR_ENDS else unseen)


def _differences(made: Asked, seen: Asked) -> Iterator[str]:
    for what in Asked._fields:
        is_same = getattr(made, what) == getattr(seen, what)
        if not is_same and not (what.endswith("_port") and getattr(seen, what) == STAR):
            yield what


def _asked(seen: Seen) -> Asked:
    ends, exchange = seen.ends, seen.exchange
    return Asked(ends.asks, ends.local, ends.local_port, ends.remote, ends.remote_port, ends.netns, exchange.method,
                 exchange.path, exchange.status_code, exchange.http_version)


def _traffic(rng: random.Random, has_ipv6: bool) -> Iterator[Asked]:
    """Over one connection each: what is paired in the kernel, then what is handed over to user space."""
    with elsewhere():
        local, remote = (f"127.{rng.randrange(1, 255)}.{rng.randrange(256)}.{rng.randrange(1, 255)}" for _ in "ab")
        yield from _talk(rng, netns_here(), socket.AF_INET, local, remote)
        if not has_ipv6:
            return
        local, remote = (f"fd00::{rng.randrange(1, 65536):x}:{rng.randrange(1, 65536):x}" for _ in "ab")
        with suppress(OSError):
            for address in (local, remote):
                add_ipv6(address)
            if wait_until_bindable(local) and wait_until_bindable(remote):
                yield from _talk(rng, netns_here(), socket.AF_INET6, local, remote)


def _talk(rng: random.Random, netns: int, family: int, local: str, remote: str) -> Iterator[Asked]:
    with bound(rng, family, socket.SOCK_STREAM, remote) as listener, \
            bound(rng, family, socket.SOCK_STREAM, local) as client:
        listener.listen()
        client.connect(listener.getsockname())
        with listener.accept()[0] as server:
            for method, body in (("GET", b""), ("POST", rng.randbytes(rng.randrange(1, 500)))):
                path, status = f"/{rng.getrandbits(64):x}", rng.randrange(200, 600)
                length = b"Content-Length: %d\r\n" % len(body) if body else b""
                _pass(client, server, f"{method} {path}?a=1 HTTP/1.1\r\n".encode() + length + b"\r\n" + body)
                _pass(server, client, b"HTTP/1.0 %d Fine\r\nContent-Length: 0\r\n\r\n" % status)
                ends = ends_of(client)
                yield Asked(True, *ends, netns, method, path, status, "1.0")
                yield Asked(False, *ends[2:], *ends[:2], netns, method, path, status, "1.0")


def _pass(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    sender.sendall(data)
    left = len(data)
    while left:
        left -= len(receiver.recv(left))
