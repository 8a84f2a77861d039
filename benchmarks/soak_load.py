"""The traffic of a soak: clients and servers that count, call by call, what they did; a process each.

``python -m benchmarks.soak_load ROLE [ADDRESS [PER_SECOND]]`` goes on until its standard input ends, then prints its
counts. Roles are server, client, tls-server and tls-client.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import dns.message
import dns.rcode
import dns.rrset

from benchmarks.soak_books import TLS_PORT, Books

# Such as nobody else uses here: others look at what goes on on this machine too.
HTTP_PORT, CHURN_PORT, UDP_PORT, DNS_PORT = 21080, 21100, 21200, 53
_TIMEOUT_S = 60.0
_STATUSES = (200, 201, 404, 500)
_MUTE_EVERY = 20
Wrap = Callable[[socket.socket], Any]


class Connection:
    """One end of a TCP connection; what it carries is counted unless `wrap` puts it into TLS."""

    def __init__(self, plain: socket.socket, books: Books, direction: str, port: int, wrap: Wrap | None = None) -> None:
        plain.settimeout(_TIMEOUT_S)
        self._books, self._key, self._counts = books, ("netflow", direction, str(port)), wrap is None
        self._add("tcp_established")
        self._socket: Any = wrap(plain) if wrap else plain
        self._has_tls = wrap is not None

    def send(self, data: bytes) -> None:
        while data:
            count = self._socket.send(data)
            self._add("bytes_written", count if self._counts else 0)
            data = data[count:]

    def recv(self) -> bytes:
        data: bytes = self._socket.recv(65_536)
        self._add("bytes_read", len(data) if self._counts else 0)
        return data

    def end(self, *, first: bool) -> None:
        """Closes it once both ends have read all: who is `first` waits for the other's goodbye."""
        if self._has_tls:
            self._socket = self._socket.unwrap()
        if first:
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(65_536):
                pass
        self._socket.close()
        self._add("tcp_closed")

    def _add(self, name: str, count: int = 1) -> None:
        self._books.add(*self._key, name, count=count)


def http_client(at: Connection, books: Books, kind: str, number: int) -> None:
    """A few requests over one connection."""
    for step in range(number, number + 1 + number % 4):
        status, method = _STATUSES[step % 4], "POST" if step % 3 == 0 else "GET"
        body = b"x" * (step % 200) if method == "POST" else b""
        path = f"/{kind}/{status}"
        at.send(f"{method} {path} HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        _message(at, b"")
        books.add("httpflow", "outgoing", method, path, str(status))
    at.end(first=True)


def http_server(at: Connection, books: Books) -> None:
    rest = b""
    while message := _message(at, rest):
        head, rest = message
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        status = path.rpartition("/")[2]
        at.send(f"HTTP/1.1 {status} Soak\r\nContent-Length: 5\r\n\r\nhello".encode())
        books.add("httpflow", "incoming", method, path, status)
    at.end(first=False)


def _message(at: Connection, rest: bytes) -> tuple[bytes, bytes] | None:
    """The head of the next message, whose body is skipped, and what follows; None at the end."""
    while b"\r\n\r\n" not in rest:
        data = at.recv()
        if not data:
            return None
        rest += data
    head, _, rest = rest.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(rest) < length:
        rest += at.recv()
    return head, rest[length:]


def churn_client(at: Connection, number: int) -> None:
    at.send(b"a" * (100 + number % 5000))
    at.end(first=True)


def churn_server(at: Connection) -> None:
    while at.recv():
        pass
    at.end(first=False)


def udp_client(books: Books, address: str, port: int, data: bytes, *, answered: bool = True) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(_TIMEOUT_S)
        client.connect((address, port))
        books.add("netflow", "outgoing", str(port), "bytes_written", count=client.send(data))
        if answered:
            books.add("netflow", "outgoing", str(port), "bytes_read", count=len(client.recv(65_536)))


def udp_server(books: Books, address: str, port: int, answer: Callable[[bytes], bytes | None]) -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, port))
    while True:
        data, peer = server.recvfrom(65_536)
        books.add("netflow", "incoming", str(port), "bytes_read", count=len(data))
        if reply := answer(data):
            books.add("netflow", "incoming", str(port), "bytes_written", count=server.sendto(reply, peer))


def dns_query(number: int) -> tuple[bytes, str]:
    """A query, and the code it will be answered with: the name says it."""
    rcode = "-1" if number % _MUTE_EVERY == 7 else "3" if number % 3 == 0 else "0"
    query = dns.message.make_query(f"r{rcode}.n{number % 50}.soak.test", "A", id=number % 65_536)
    return query.to_wire(), rcode


def dns_answer(books: Books, transport: str, wire: bytes) -> bytes | None:
    query = dns.message.from_wire(wire)
    name = query.question[0].name
    rcode = name.labels[0].decode()[1:]
    books.add("dnsflow", "incoming", transport, rcode)
    if rcode == "-1":
        return None
    reply = dns.message.make_response(query)
    reply.set_rcode(dns.rcode.Rcode(int(rcode)))
    if rcode == "0":
        reply.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.7"))
    told: bytes = reply.to_wire()
    return told


def dns_over_tcp_client(at: Connection, books: Books, number: int) -> None:
    wire, rcode = dns_query(number)
    if rcode == "-1":
        wire, rcode = dns_query(number + 1)
    at.send(struct.pack("!H", len(wire)) + wire)
    _framed(at)
    books.add("dnsflow", "outgoing", "tcp", rcode)
    at.end(first=True)


def dns_over_tcp_server(at: Connection, books: Books) -> None:
    while wire := _framed(at):
        if reply := dns_answer(books, "tcp", wire):
            at.send(struct.pack("!H", len(reply)) + reply)
    at.end(first=False)


def _framed(at: Connection) -> bytes:
    """One message with its length before it; nothing at the end."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        more = at.recv()
        if not more:
            return b""
        data += more
    return data[2:]


def listen(books: Books, address: str, port: int, serve: Callable[[Connection], None],
           wrap: Wrap | None = None) -> None:
    """A thread that accepts, and one for every connection."""
    server = socket.create_server((address, port), backlog=512)

    def one(plain: socket.socket) -> None:
        serve(Connection(plain, books, "incoming", port, wrap))

    def accept() -> None:
        while True:
            threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def opened(books: Books, address: str, port: int, wrap: Wrap | None = None) -> Connection:
    return Connection(socket.create_connection((address, port), _TIMEOUT_S), books, "outgoing", port, wrap)


def serve(books: Books, address: str) -> None:
    listen(books, address, HTTP_PORT, partial(http_server, books=books))
    listen(books, address, CHURN_PORT, churn_server)
    listen(books, address, DNS_PORT, partial(dns_over_tcp_server, books=books))
    for port, answer in ((UDP_PORT, bytes), (DNS_PORT, partial(dns_answer, books, "udp"))):
        threading.Thread(target=udp_server, args=(books, address, port, answer), daemon=True).start()


def serve_tls(books: Books, address: str, certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listen(books, address, TLS_PORT, partial(http_server, books=books), partial(context.wrap_socket, server_side=True))


def ask(books: Books, address: str, number: int) -> None:
    """One of the kinds after the other."""
    kind = number % 5
    if kind == 0:
        http_client(opened(books, address, HTTP_PORT), books, "plain", number // 5)
    elif kind == 1:
        churn_client(opened(books, address, CHURN_PORT), number)
    elif kind == 2:
        udp_client(books, address, UDP_PORT, b"u" * (1 + number % 1000))
    elif kind == 3:
        wire, rcode = dns_query(number // 5)
        udp_client(books, address, DNS_PORT, wire, answered=rcode != "-1")
        books.add("dnsflow", "outgoing", "udp", rcode)
    else:
        dns_over_tcp_client(opened(books, address, DNS_PORT), books, number // 5)


def ask_tls(books: Books, address: str, number: int) -> None:
    context = ssl._create_unverified_context()
    http_client(opened(books, address, TLS_PORT, context.wrap_socket), books, "tls", number)


def main() -> None:
    role, address, *rest = sys.argv[1:]
    books = Books()
    if role == "server":
        serve(books, address)
    elif role == "tls-server":
        serve_tls(books, address, rest[0])
    # What is mapped is what is hooked; whoever started this waits for that, and says so by a line.
    print("ready", flush=True)
    sys.stdin.readline()
    if role in ("client", "tls-client"):
        _paced(partial(ask if role == "client" else ask_tls, books, address), float(rest[0]))
    else:
        sys.stdin.read()
    print(books.told(), flush=True)


def _paced(work: Callable[[int], None], per_second: float) -> None:
    begun = time.monotonic()
    number = 0
    while not select.select([sys.stdin], [], [], max(0.0, begun + number / per_second - time.monotonic()))[0]:
        work(number)
        number += 1


if __name__ == "__main__":
    main()
