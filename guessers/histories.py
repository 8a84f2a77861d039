"""What can happen to a connection, step by step: sent, held back, read late, lost, sent again."""

from __future__ import annotations

import ctypes
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27


def _send(rng: random.Random, sender: socket.socket, _: socket.socket) -> None:
    with suppress(OSError):
        sender.send(rng.randbytes(rng.choice((rng.randrange(1, 300), rng.randrange(300, 9000)))))


def _send_more(rng: random.Random, sender: socket.socket, _: socket.socket) -> None:
    """Held back by the sender: written, not pushed."""
    with suppress(OSError):
        sender.send(rng.randbytes(rng.randrange(1, 2000)), 0x8000)  # MSG_MORE


def _send_urgent(rng: random.Random, sender: socket.socket, _: socket.socket) -> None:
    with suppress(OSError):
        sender.send(rng.randbytes(1), socket.MSG_OOB)


def _burst(rng: random.Random, sender: socket.socket, _: socket.socket) -> None:
    for _turn in range(rng.randrange(2, 9)):
        with suppress(OSError):
            sender.send(rng.randbytes(rng.randrange(1, 700)))


def _read_some(rng: random.Random, _: socket.socket, receiver: socket.socket) -> None:
    with suppress(OSError):
        receiver.recv(rng.randrange(1, 4000))


def _read_slowly(rng: random.Random, sender: socket.socket, receiver: socket.socket) -> None:
    """What is read late is acknowledged late: the sender's round trip takes as long as we like."""
    _send(rng, sender, receiver)
    until = time.monotonic() + rng.uniform(20e-6, 900e-6)
    while time.monotonic() < until:
        pass
    _read_some(rng, sender, receiver)


def _go_deaf(rng: random.Random, _: socket.socket, receiver: socket.socket) -> None:
    """The receiver's socket drops segments by their length: some are lost, and lost again when sent again."""
    _filter(receiver, 1 << rng.randrange(3))


def _filter(receiver: socket.socket, lost_lengths: int) -> None:
    """A classic filter on our own socket: it needs no netem, no firewall and no module.

    struct sock_filter: load the length; if (length & lost_lengths) drop; else keep.
    """
    program = [(0x80, 0, 0, 0), (0x45, 0, 1, lost_lengths), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF_FFFF)]
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = (ctypes.c_char * len(code)).from_buffer_copy(code)
    head = struct.pack("<H6xQ", len(program), ctypes.addressof(buffer))
    with suppress(OSError):
        receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)


def _outrun(rng: random.Random, sender: socket.socket, receiver: socket.socket) -> None:
    """More full segments than the window takes: snd_sml, the end of the last small one, falls behind snd_nxt."""
    _go_deaf(rng, sender, receiver)
    with suppress(OSError):
        sender.send(rng.randbytes(rng.randrange(15_000, 40_000)))


def _hole(rng: random.Random, sender: socket.socket, receiver: socket.socket) -> None:
    """Lost between two that arrive: what follows is sent without touching cwnd_usage_seq (max_packets_seq of old)."""
    _filter(receiver, 1)
    for odd in (0, 1, 0, 0, *rng.choices((0, 1), k=rng.randrange(3))):
        with suppress(OSError):
            sender.send(rng.randbytes(2 * rng.randrange(20, 140) + odd))


def _lose_and_recover(rng: random.Random, sender: socket.socket, receiver: socket.socket) -> None:
    """Some of a few small segments are lost, and all of those sent again: total_retrans grows by any number."""
    _filter(receiver, 1 << rng.randrange(3))
    for _turn in range(rng.randrange(3, 12)):
        _send_small(rng, sender)
    _hear_all(rng, sender, receiver)
    for _turn in range(3):
        _send_small(rng, sender)


def _send_small(rng: random.Random, sender: socket.socket) -> None:
    with suppress(OSError):
        sender.send(rng.randbytes(rng.randrange(1, 280)))


def _hear_all(_: random.Random, __: socket.socket, receiver: socket.socket) -> None:
    with suppress(OSError):
        receiver.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


Step = Callable[[random.Random, socket.socket, socket.socket], None]
STEPS: tuple[Step, ...] = (
    _send, _send, _send_more, _send_urgent, _burst, _burst, _read_some, _read_slowly, _read_slowly, _go_deaf, _go_deaf,
    _hear_all, _hole, _lose_and_recover, _lose_and_recover)
FINALES: tuple[Step, ...] = (_outrun, _hole, _hole, _send_more, _read_some)
