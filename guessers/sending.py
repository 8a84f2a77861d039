"""Sends known messages over a connection of ours, by every system call that can, and catches each on its way."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import random
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from guessers.messages import Messages, Received, Seen, Sent, near
from guessers.sampling import Sampler

_SPACE = 1 << 16
_MOST_PIECES = 8  # up to so many, the kernel keeps an iovec on its stack: UIO_FASTIOV

Buffers = list[memoryview]
Call = Callable[[socket.socket, Buffers, tuple[str, int]], object]
# By the words of the evidence. A connected TCP socket takes an address, and does not look at it.
CALLS: Mapping[str, Call] = {
    "send": lambda sock, buffers, _: sock.send(buffers[0]),
    "write": lambda sock, buffers, _: os.write(sock.fileno(), buffers[0]),
    "sendmsg": lambda sock, buffers, _: sock.sendmsg(buffers),
    "sendmsg of pieces": lambda sock, buffers, _: sock.sendmsg(buffers),
    "writev of pieces": lambda sock, buffers, _: os.writev(sock.fileno(), buffers),
    "sendto an address": lambda sock, buffers, peer: sock.sendto(buffers[0], peer),
    "sendmsg of pieces to an address": lambda sock, buffers, peer: sock.sendmsg(buffers, (), 0, peer),
}
READS: Mapping[str, Callable[[socket.socket], object]] = {
    "recv": lambda sock: sock.recv(_SPACE),
    "recvmsg": lambda sock: sock.recvmsg(_SPACE),
    "read": lambda sock: os.read(sock.fileno(), _SPACE),
}


def collect_messages(sampler: Sampler, rng: random.Random, *, turns: int = 2) -> None:
    """A few dozen messages, most of them followed along one of the pointers that lead to their own stack."""
    haul, memory = sampler.haul, sampler.memory
    if not memory.has("msghdr"):
        return
    with mmap.mmap(-1, _SPACE) as space, memoryview(space) as view:
        postman = Postman(sampler, rng, view)
        plain = [seen for call in CALLS for _ in range(turns) if (seen := postman.send(call, None))]
        several = near(s for s in plain if len(s.sent.pieces) > 1)
        named = near(s for s in plain if s.sent.name)
        followed = [seen for at in sorted(several | named) for call in CALLS for _ in range(turns)
                    if (seen := postman.send(call, at))]
        memory.follow(None)
    haul.messages = Messages(plain, followed, postman.received)


class Postman:
    """A connection over loopback, and user memory to send from."""

    def __init__(self, sampler: Sampler, rng: random.Random, view: memoryview) -> None:
        self._memory = sampler.memory
        self._rng = rng
        self._view = view
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        stimulus = sampler.stimulus
        self._addresses = stimulus.addresses
        local, remote = stimulus.addresses.pair(socket.AF_INET)
        server = stimulus.bind(stimulus.open(socket.AF_INET, socket.SOCK_STREAM), remote)
        client = stimulus.bind(stimulus.open(socket.AF_INET, socket.SOCK_STREAM), local)
        server.sock.listen()
        self._reader = stimulus.connect(client, server).sock
        self._sock = client.sock
        self.received: list[Received] = []
        self._turns = itertools.cycle(READS)

    def send(self, call: str, follow: int | None) -> Seen | None:
        """One message by that call, and what was seen of it; None when nothing was."""
        peer = self._addresses.local(socket.AF_INET), self._rng.randrange(1024, 65536)
        pieces = [self._piece() for _ in range(self._rng.randint(2, _MOST_PIECES) if "pieces" in call else 1)]
        self._memory.follow(follow)
        self._memory.clear()
        try:
            CALLS[call](self._sock, [self._view[at:at + length] for at, length in pieces], peer)
        finally:
            messages = self._memory.messages()
            self._receive()
        if not messages:
            return None
        first = messages[0]
        sent = Sent(call, tuple((self._start + at, length) for at, length in pieces),
                    _sockaddr(peer) if "address" in call else None)
        return Seen(sent, first.address, first.data, follow, first.lead)

    def _receive(self) -> None:
        """Takes what was sent from the other end, in one message where a hook shows how it is filled."""
        self._memory.clear()
        call = next(self._turns)
        with suppress(BlockingIOError):
            READS[call](self._reader)
        messages = [m for m in self._memory.messages() if m.hook.name == "receive"]
        iterators = tuple(c.args[c.hook.argument] for c in self._memory.calls() if c.hook.object == "iov_iter")
        if messages and iterators:
            self.received.append(Received(call, messages[0].address, iterators))

    def _piece(self) -> tuple[int, int]:
        """A random part of the space: offset and length."""
        return self._rng.randrange(1, _SPACE // 2), self._rng.randrange(20, 700)


def _sockaddr(peer: tuple[str, int]) -> bytes:
    """The beginning of ``struct sockaddr_in``: family, port, address."""
    return socket.AF_INET.to_bytes(2, "little") + peer[1].to_bytes(2, "big") + socket.inet_aton(peer[0])
