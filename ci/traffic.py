"""Known network traffic between two ends of our own, counted by the programs at them, for a collector to be held to."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

REFUSED_PORT = 9
_PATIENCE_S = 30.0
_CONNECTIONS = 5
LOOPBACK = ("127.0.0.1", "::1")


class Compared(NamedTuple):
    """One count of one kind of traffic: ``tcp4 bytes_read``, say."""

    what: str
    sent: int
    seen: int


def serve(addresses: Sequence[str]) -> dict[str, int]:
    """Answers with half of what it gets, over TCP and UDP at every address, from threads; returns the ports."""
    ports = {}
    for address in addresses:
        family = _family(address)
        stream = socket.create_server((address, 0), family=family)
        datagram = socket.socket(family, socket.SOCK_DGRAM)
        datagram.bind((address, 0))
        for name, sock, answer in (("tcp", stream, _answer_streams), ("udp", datagram, _answer_datagrams)):
            ports[f"{name}{_digit(address)}"] = sock.getsockname()[1]
            threading.Thread(target=answer, args=(sock,), daemon=True).start()
    return ports


def drive(addresses: Sequence[str], ports: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """A few connections and datagrams of random sizes, and a refused connect; what was counted, by ``tcp4 PORT``."""
    counted = {}
    for address in addresses:
        for name, send in (("tcp", _connections), ("udp", _datagrams)):
            port = ports[f"{name}{_digit(address)}"]
            counted[f"{name}{_digit(address)} {port}"] = send(address, port)
    with suppress(ConnectionRefusedError):
        socket.create_connection((addresses[0], REFUSED_PORT), timeout=_PATIENCE_S).close()
        raise SystemExit(f"something listens on port {REFUSED_PORT} of a namespace we made")
    counted[f"refused {REFUSED_PORT}"] = {"tcp_established": 0, "bytes_written": 0}
    return counted


def compare(
    records: Sequence[Mapping[str, Any]], expected: Mapping[str, Mapping[str, int]], addresses: Sequence[str]
) -> Iterator[Compared]:
    """What a collector's records say of traffic among our addresses, beside what its client counted."""
    ours = [r for r in records if {r["tags"]["src_ip"], r["tags"]["dst_ip"]} <= {*addresses}]
    for name, counts in expected.items():
        kind, _, port = name.rpartition(" ")
        mine = [r for r in ours if r["tags"]["dst_port"] == port and r["tags"]["direction"] == "outgoing"]
        for field, count in counts.items():
            yield Compared(f"{kind} {field}", count, sum(r["fields"].get(field, 0) for r in mine))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _digit(address: str) -> str:
    return "6" if ":" in address else "4"


def _answer_streams(listener: socket.socket) -> None:
    while True:
        peer, _ = listener.accept()
        with peer:
            got = 0
            while part := peer.recv(1 << 16):
                got += len(part)
            peer.sendall(bytes(got // 2))


def _answer_datagrams(bound: socket.socket) -> None:
    while True:
        data, peer = bound.recvfrom(1 << 16)
        bound.sendto(data[::2], peer)


def _connections(address: str, port: int) -> dict[str, int]:
    counts = {"bytes_written": 0, "bytes_read": 0, "tcp_established": 0, "tcp_closed": 0}
    for _ in range(_CONNECTIONS):
        sent = random.randrange(1, 200_000)
        with socket.create_connection((address, port), timeout=_PATIENCE_S) as connection:
            connection.sendall(bytes(sent))
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                counts["bytes_read"] += len(part)
        counts["bytes_written"] += sent
        counts["tcp_established"] += 1
        counts["tcp_closed"] += 1
    return counts


def _datagrams(address: str, port: int) -> dict[str, int]:
    counts = {"bytes_written": 0, "bytes_read": 0}
    with socket.socket(_family(address), socket.SOCK_DGRAM) as datagram:
        datagram.settimeout(_PATIENCE_S)
        datagram.connect((address, port))
        for _ in range(_CONNECTIONS):
            counts["bytes_written"] += datagram.send(bytes(random.randrange(1, 1400)))
            counts["bytes_read"] += len(datagram.recv(1 << 16))
    return counts


def _usable(address: str) -> bool:
    """A kernel may have no IPv6; then nothing can be bound to its loopback address."""
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True


def main() -> None:
    """Both ends on this loopback; what the client counted goes to standard output."""
    addresses = [address for address in LOOPBACK if _usable(address)]
    json.dump(drive(addresses, serve(addresses)), sys.stdout)


if __name__ == "__main__":
    main()
