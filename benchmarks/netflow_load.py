"""Whether netflow counts to the byte under load: 70,000 connections at once and 3,000 new ones a second.

``sudo python -m benchmarks.netflow_load``, in a network namespace of its own. Both ends of a connection are on this
machine, so that it is 140,000 sockets that are followed. What was sent and received is known from the calls themselves.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.measure import REPOSITORY
from collector.config import Options
from collector.datasets.netflow import Netflow
from collector.flows import FlowDelta
from collector.pipeline import wanted
from guessers.namespace import Netns
from kcompat.btf import BtfResolver
from kcompat.kernel import Kernel
from kcompat.offsets import Offsets
from kcompat.version import running_version_code

_IP_BIND_ADDRESS_NO_PORT = 24
_PER_SOURCE = 20_000
_FIELDS = ("bytes_read", "bytes_written", "established", "closed")
_PATIENCE_S = 900


@dataclass(slots=True)
class Outcome:
    """What one run did and what was counted of it."""

    done: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    lost: dict[str, int] = field(default_factory=dict)
    rate: float = 0.0
    flush_s: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--connections", type=int, default=70_000)
    parser.add_argument("--rate", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--max-sockets", type=int, nargs="*", default=[1 << 18, 1 << 17])
    parser.add_argument("--traffic", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.traffic is not None:
        traffic(told.traffic, told.connections, told.rate, told.seconds)
        return
    print(f"load of the machine {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors, kernel {os.uname().release}\n")
    print("| bound of sockets | new a second | what | done | counted | lost events | slowest flush |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    for bound in told.max_sockets:
        one = run(bound, told.connections, told.rate, told.seconds)
        lost = ", ".join(f"{count} {what}" for what, count in one.lost.items() if count) or "none"
        for what in _FIELDS:
            print(f"| {bound} | {one.rate:.0f} | {what} | {one.done[what]} | {one.seen[what]} | {lost} | "
                  f"{max(one.flush_s):.2f} s |", flush=True)


def run(bound: int, connections: int, rate: int, seconds: float) -> Outcome:
    """One load beside one collector that is flushed every ten seconds."""
    # The namespace is held until all is counted: its number would be given to somebody else's.
    outcome, namespaces, stop = Outcome(), list[Netns](), threading.Event()
    kernel = Kernel.running()
    offsets = Offsets(BtfResolver().resolve(kernel, wanted(("netflow",))))
    options = Options("box", loopback=True, max_sockets=bound, max_flows=1 << 18)
    with Netflow(offsets, options, running_version_code(kernel.release)) as netflow:
        before = dict(netflow.losses)

        def flush() -> None:
            begun = time.monotonic()
            deltas = netflow.flush()
            outcome.flush_s.append(time.monotonic() - begun)
            for delta in deltas:
                add(outcome.seen, delta, namespaces[0].inode if namespaces else 0)

        def keep_flushing() -> None:
            while not stop.wait(10):
                flush()

        flusher = threading.Thread(target=keep_flushing)
        flusher.start()
        try:
            for told in worked(namespaces, connections, rate, seconds):
                outcome.done.update(dict(zip((*_FIELDS, "per_second"), map(int, told.split()), strict=True)))
        finally:
            stop.set()
            flusher.join()
        flush()
        namespaces[0].close()
        outcome.rate = outcome.done.pop("per_second")
        outcome.lost = {what: count - before[what] for what, count in netflow.losses.items()
                        if what not in ("udp peers", "udp addresses", "events")}
    return outcome


def add(seen: Counter[str], delta: FlowDelta, inode: int) -> None:
    if delta.netns == inode and delta.transport == "tcp":
        for what in _FIELDS:
            seen[what] += getattr(delta, what)


def worked(namespaces: list[Netns], connections: int, rate: int, seconds: float) -> Iterator[str]:
    """What each of the processes says of its traffic: so many that their descriptors suffice, in one new namespace.

    None goes on before all have their connections.
    """
    each = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100) // 2
    count = -(-connections // each)
    made: list[subprocess.Popen[str]] = []

    def begin() -> None:
        namespaces.append(Netns.fresh())
        for number in range(count):
            made.append(subprocess.Popen(
                [sys.executable, "-m", "benchmarks.netflow_load", "--traffic", str(number),
                 "--connections", str(connections // count), "--rate", str(rate // count), "--seconds", str(seconds)],
                cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    try:
        for one in made:
            if not one.stdout or one.stdout.readline() != "ready\n":
                raise RuntimeError("the connections were not made")
        yield from _together(made)
    finally:
        for one in made:
            one.kill()
            one.wait()


def _together(made: list[subprocess.Popen[str]]) -> list[str]:
    for one in made:
        assert one.stdin
        one.stdin.write("go\n")
        one.stdin.flush()
    return [one.communicate(timeout=_PATIENCE_S)[0] for one in made]


def traffic(worker: int, connections: int, rate: int, seconds: float) -> None:
    """Both ends, one after the other: opens all, keeps them while others come and go, uses and closes them."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    done: Counter[str] = Counter()
    server = socket.create_server((f"127.0.1.{worker + 1}", 8000), backlog=1024)
    kept = [_opened(server, number // _PER_SOURCE, done) for number in range(connections)]
    print("ready", flush=True)
    sys.stdin.readline()
    begun, made = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        if made >= passed * rate:
            time.sleep(0.001)
            continue
        pair = _opened(server, 100, done)
        _talk(*pair, made, done)
        _close(*pair, done)
        made += 1
    per_second = made / seconds
    for number, (client, accepted) in enumerate(kept):
        _talk(client, accepted, number, done)
    for client, accepted in kept:
        _close(client, accepted, done)
    time.sleep(1)
    print(*(done[what] for what in _FIELDS), int(per_second))


def _opened(server: socket.socket, source: int, done: Counter[str]) -> tuple[socket.socket, socket.socket]:
    client = socket.socket()
    client.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    client.bind((f"127.1.0.{source + 1}", 0))
    client.connect(server.getsockname())
    accepted, _ = server.accept()
    done["established"] += 2
    return client, accepted


def _talk(client: socket.socket, accepted: socket.socket, number: int, done: Counter[str]) -> None:
    for sender, receiver, size in ((client, accepted, 100 + number % 7), (accepted, client, 200 + number % 11)):
        done["bytes_written"] += sender.send(bytes(size))
        done["bytes_read"] += len(receiver.recv(4096))


def _close(client: socket.socket, accepted: socket.socket, done: Counter[str]) -> None:
    """With a reset, which leaves no TIME_WAIT: of ports there are not that many."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    accepted.close()
    done["closed"] += 2


if __name__ == "__main__":
    main()
