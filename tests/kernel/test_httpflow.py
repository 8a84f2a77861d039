"""httpflow beside Python's own server and client, with each hook set."""

import ctypes
import os
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

import pytest

from collector.config import Options
from collector.datasets import hooks
from collector.datasets import httpflow as httpflow_module
from collector.datasets.httpflow import Httpflow
from collector.http_flows import HttpFlows
from kcompat.errors import Unsupported
from kcompat.kernel import Kernel
from kcompat.version import running_version_code
from tests.kernel.test_netflow import backends_this_kernel_has, in_namespace

OPTIONS = Options("box", interval_s=1, loopback=True)
SLEPT_S = 0.05
REQUESTS = 40  # every method with every status


class Flows:
    """What one test sees of programs that stay attached: others are at work on this machine too."""

    def __init__(self, dataset, is_ours):
        self._dataset, self._is_ours = dataset, is_ours
        self._flows = HttpFlows(lambda: OPTIONS)
        self._lock = threading.Lock()

    def saw(self, seen):
        if self._is_ours(seen.ends):
            with self._lock:
                self._flows.add(seen)

    def take(self):
        self._dataset.flush()
        with self._lock:
            return self._flows.take(1, lambda netns, address: None)


class Attached:
    """Programs attached once for all tests; whoever is at it sees what they see."""

    def __init__(self, oracle, backends):
        self.at = None
        self.greeted = []
        self.dataset = Httpflow(oracle, OPTIONS, running_version_code(Kernel.running().release), self._saw, backends,
                                lambda ends, name: self.greeted.append((ends, name)))

    def _saw(self, seen):
        if at := self.at:
            at.saw(seen)


def attached(oracle, *backends):
    made = Attached(oracle, backends or ("kprobe", "rawtp"))
    try:
        yield made
    finally:
        made.dataset.close()


@contextmanager
def flows_of(made, is_ours=lambda ends: ends.pid == os.getpid()):
    """With nothing left of the test before. What is lost is missing in what the test counts."""
    made.dataset.flush()
    made.at = flows = Flows(made.dataset, is_ours)
    try:
        yield flows
    finally:
        made.at = None


def flows_on(made, ends):
    """What happens in these namespaces, whoever does it."""
    numbers = {end.number for end in ends}
    return flows_of(made, lambda one: one.netns in numbers)


def sums(records):
    counts = Counter()
    for r in records:
        counts[r.fields["method"], r.fields["path"], r.fields["status_code"]] += r.fields["count"]
    return counts


@pytest.fixture(scope="module", params=["kprobe", "rawtp"])
def httpflow(request, oracle):
    try:
        yield from attached(oracle, request.param)
    except Unsupported as error:
        if request.param in backends_this_kernel_has():
            raise
        pytest.skip(str(error))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/slow":
            time.sleep(SLEPT_S)
        self.send_response(int(self.path[1:4]) if self.path[1:4].isdigit() else 200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"hello")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_TRACE = do_PROPFIND = answer

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    """A server in the namespace of this thread."""
    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def talking(work):
    """`work(port)` beside a server, both in a network namespace of their own."""
    def body():
        with serving() as port:
            return port, work(port)
    return in_namespace(body)


def ours(records, port):
    """(client's side, server's side)"""
    return ([r for r in records if r.tags["dst_port"] == str(port)],
            [r for r in records if r.tags["src_port"] == str(port)])


def test_every_request_is_counted_once_on_either_side(httpflow):
    methods, expected = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"), Counter()

    def work(port):
        client = HTTPConnection("127.0.0.1", port)
        for number in range(REQUESTS):
            method, status = methods[number % 8], (200, 201, 302, 404, 500)[number % 5]
            body = b"b" * number if method in ("POST", "PUT", "PATCH") else None
            client.request(method, f"/{status}?n={number}", body)
            assert client.getresponse().read() is not None
            expected[method, f"/{status}", status] += 1
        client.close()

    with flows_of(httpflow) as flows:
        port, _ = talking(work)
        records = flows.take()

    sides = ours(records, port)
    assert [sums(side) for side in sides] == [expected, expected]
    assert {(r.tags["direction"], r.tags["src_ip"], r.tags["family"], r.fields["http_version"], r.fields["truncated"])
            for r in sides[0]} == {("outgoing", "127.0.0.1", "IPv4", "1.1", False)}
    assert {r.tags["direction"] for r in sides[1]} == {"incoming"}


def test_a_request_of_another_method_takes_its_own_response(httpflow):
    """As WebDAV's, at once before others: its response is not the next one's, nor are theirs shifted by one."""
    asked = [("GET", 200), ("PROPFIND", 207), ("GET", 404), ("PROPFIND", 207), ("POST", 500), ("GET", 201)]

    def work(port):
        client = HTTPConnection("127.0.0.1", port)
        for method, status in asked:
            client.request(method, f"/{status}")
            assert client.getresponse().read() == b"hello"
        client.close()

    with flows_of(httpflow) as flows:
        port, _ = talking(work)
        records = flows.take()

    expected = {(method, f"/{status}", status): 1 for method, status in asked if method != "PROPFIND"}
    assert [sums(side) for side in ours(records, port)] == [expected, expected]


@pytest.mark.thorough
def test_a_second_try_does_all_that_the_first_was_kept_from(oracle, monkeypatch):
    """As where programs may be preempted; of each hook the first program is taken away."""
    for module in (hooks, httpflow_module):
        monkeypatch.setattr(module, "preempts_programs", lambda: True)
    try:
        made = Attached(oracle, ["rawtp"])
    except Unsupported as error:
        pytest.skip(str(error))
    loaded, firsts = made.dataset.loaded, {}
    for one in reversed(loaded.attachments):
        firsts[one.name] = one
    for one in firsts.values():
        one.close()
        loaded.attachments.remove(one)

    def work(port):
        with closing(HTTPConnection("127.0.0.1", port)) as client:
            for _ in range(REQUESTS):
                client.request("GET", "/200")
                client.getresponse().read()

    def sockets():
        return [key for key, value in loaded.maps["conns"].items() if port in struct.unpack_from("<HH", value, 104)]

    with closing(made.dataset), flows_of(made) as flows:
        port, _ = talking(work)
        assert [sums(side) for side in ours(flows.take(), port)] == [{("GET", "/200", 200): REQUESTS}] * 2
        deadline = time.monotonic() + 30
        while sockets():
            assert time.monotonic() < deadline, "sockets whose end was not seen"
            time.sleep(0.05)


@pytest.mark.thorough
def test_what_the_server_waits_is_the_latency(httpflow):
    def work(port):
        client = HTTPConnection("127.0.0.1", port)
        begun = time.monotonic()
        client.request("GET", "/slow")
        client.getresponse().read()
        return time.monotonic() - begun

    with flows_of(httpflow) as flows:
        port, took_s = talking(work)
        records = flows.take()

    (asked,), (answered,) = ours(records, port)
    assert answered.fields["latency"] / 1e9 >= SLEPT_S
    # The client may only get to know that it has sent when the server is at sleep already.
    assert 0 < asked.fields["latency"] / 1e9 <= took_s


def raw(port, *pieces):
    """Sends pieces one by one, each once the one before is out, and reads to the end."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.002)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while data := client.recv(4096):
            received += data
    return received


def hello(name, protocols=1):
    """What a client of TLS sends first, with as many protocols to choose from."""
    context = ssl.create_default_context()
    context.set_alpn_protocols([f"{number:04}" * 25 for number in range(protocols)])
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name).do_handshake()
    return sent.read()


def test_whom_clients_of_tls_ask_for_is_told_once(httpflow):
    sent = {"short.example": hello("short.example"), "long.example": hello("long.example", 30)}
    assert len(sent["long.example"]) > 3000

    def greet():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            # A second one is none any more.
            for pieces in [(one, one) for one in sent.values()] + [(b"x", hello("later.example"))]:
                with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
                    for piece in pieces:
                        client.sendall(piece)
                        assert server.recv(len(piece), socket.MSG_WAITALL) == piece
            return listener.getsockname()[1]

    httpflow.greeted.clear()
    with flows_of(httpflow) as flows:
        port = in_namespace(greet)
        flows.take()

    told = [(ends, name) for ends, name in httpflow.greeted if ends.remote_port == port]
    assert [name for _, name in told] == list(sent)
    assert {(ends.remote, ends.asks) for ends, _ in told} == {(bytes(10) + b"\xff\xff\x7f\0\0\1", True)}
    assert httpflow.dataset.losses["http pieces"] == 0


EMPTY = b"HTTP/1.1 %d Fine\r\nContent-Length: 0\r\n\r\n"
HEAD = b"GET /%d HTTP/1.1\r\nHost: name.test\r\n\r\n"
THREE = [HEAD % 201, HEAD % 202, HEAD % 203]
BODY = HEAD % 500 + b"1234"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_fails_with_one_exchange_is_counted_as_lost_and_hinders_no_other(httpflow, method, caplog):
    """Some are merged in the kernel, others, as a client's with a body, made of pieces, which are not taken again."""
    tried = Counter()

    def saw(seen):
        tried[seen.ends.asks, seen.exchange.status_code] += 1
        if seen.exchange.status_code == 201:
            raise OSError("nobody knows why")

    def work(port):
        client = HTTPConnection("127.0.0.1", port)
        for status in (200, 201, 202):
            client.request(method, f"/{status}", b"body" if method == "POST" else None)
            client.getresponse().read()
            time.sleep(0.2)
        client.close()

    before = httpflow.dataset.losses
    with flows_of(httpflow) as flows:
        flows.saw = lambda seen: flows._is_ours(seen.ends) and saw(seen)
        talking(work)
        flows.take()

    assert tried == {(asks, status): 1 for asks in (True, False) for status in (200, 201, 202)}
    # Of events that programs were kept from others' sockets have their share.
    lost = {what: count - before[what] for what, count in httpflow.dataset.losses.items()
            if count > before[what] and what != "http events"}
    assert sum(lost.values()) == 2 and lost.keys() <= {"http exchanges", "http pieces"}
    assert sum("httpflow goes on" in record.message for record in caplog.records) <= 1


PIECES = {
    "pipelined in one call": [b"".join(THREE)],
    "byte by byte": [bytes([byte]) for byte in b"".join(THREE)],
    "pipelined over calls": [THREE[0] + THREE[1][:7], THREE[1][7:] + THREE[2]],
    "a body that looks like a request": [b"POST /201 HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY[:9],
                                         BODY[9:], *THREE[1:]],
}


@pytest.mark.thorough
@pytest.mark.parametrize("what", PIECES)
def test_what_is_pipelined_or_split_is_counted_in_full(httpflow, what):
    with flows_of(httpflow) as flows:
        port, received = talking(lambda port: raw(port, *PIECES[what]))
        records = flows.take()

    assert received.count(b"HTTP/1.1 20") == 3
    for side in ours(records, port):
        method = PIECES[what][0].partition(b" ")[0].decode() if what.startswith("a body") else "GET"
        assert sums(side) == {(method, "/201", 201): 1, ("GET", "/202", 202): 1, ("GET", "/203", 203): 1}


def test_a_connection_that_was_forgotten_is_taken_up_again(httpflow):
    """As after ten minutes of silence, or when its first piece found a ring full."""
    def exchanged(client, paths):
        client.sendall(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % path for path in paths))
        received = b""
        while received.count(b"hello") < len(paths):
            received += client.recv(4096)

    def work(port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            exchanged(client, [201, 202])
            httpflow.dataset.flush()
            with httpflow.dataset._lock:
                httpflow.dataset._connections._followed.clear()
            exchanged(client, [203])
            exchanged(client, [205, 206])
            # While there is a connection to take up.
            httpflow.dataset.flush()

    before = httpflow.dataset.losses["http pieces"]
    with flows_of(httpflow) as flows:
        port, _ = talking(work)
        records = flows.take()

    expected = {("GET", f"/{status}", status): 1 for status in (201, 202, 203, 205, 206)}
    assert [sums(side) for side in ours(records, port)] == [expected, expected]
    assert httpflow.dataset.losses["http pieces"] == before


def test_vectors_and_messages_are_calls_too(httpflow):
    """writev(2), readv(2), sendmsg(2), recvmsg(2) and recv with MSG_PEEK, between two sockets of ours."""
    def work():
        with socket.create_server(("127.0.0.1", 0)) as listener, \
                socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            with server:
                os.writev(client.fileno(), [b"GET /vec", b"tor HTTP/1.1\r\n", b"\r\n"])
                server.recv(4, socket.MSG_PEEK)
                os.readv(server.fileno(), [bytearray(6), bytearray(100)])
                server.sendmsg([b"HTTP/1.1 204 ", b"None\r\n", b"\r\n"])
                client.recvmsg(100)
                client.sendmsg([b"GET /message HTTP/1.1\r\n\r\n"])
                server.recv(100, socket.MSG_PEEK)
                server.recvmsg_into([bytearray(100)])
                os.writev(server.fileno(), [b"HTTP/1.1 204 None\r\n\r\n"])
                client.recv_into(bytearray(100))
            return listener.getsockname()[1]

    with flows_of(httpflow) as flows:
        port = in_namespace(work)
        records = flows.take()

    for side in ours(records, port):
        assert sums(side) == {("GET", "/vector", 204): 1, ("GET", "/message", 204): 1}


class Message(ctypes.Structure):
    """struct mmsghdr, of one piece."""

    _fields_ = (("name", ctypes.c_void_p), ("name_size", ctypes.c_uint), ("iov", ctypes.c_void_p),
                ("segments", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_size", ctypes.c_size_t),
                ("flags", ctypes.c_int), ("moved", ctypes.c_ulong))


def messages(*texts):
    """An array of them, and what it points to."""
    pieces = [ctypes.create_string_buffer(text, len(text)) for text in texts]
    vectors = [(ctypes.c_size_t * 2)(ctypes.addressof(piece), len(piece)) for piece in pieces]
    made = (Message * len(texts))(*(Message(iov=ctypes.addressof(vector), segments=1) for vector in vectors))
    made.kept = pieces, vectors
    return made


@pytest.mark.thorough
def test_many_messages_of_one_call_are_seen_or_told_to_be_lost(httpflow):
    """sendmmsg(2) and recvmmsg(2): one message in a call, and again in the same memory, is seen; of two the first."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name, connection, array):
        assert getattr(libc, name)(connection.fileno(), array, len(array), 0, None) == len(array)

    def work():
        with socket.create_server(("127.0.0.1", 0)) as listener, \
                socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            with server:
                request, answer = messages(HEAD % 200), messages(EMPTY % 200)
                for _ in range(2):
                    call("sendmmsg", client, request)
                    server.recv(100)
                    server.sendall(EMPTY % 200)
                    call("recvmmsg", client, answer)
                call("sendmmsg", client, messages(HEAD % 201, HEAD % 202))
                server.recv(2 * len(HEAD % 201), socket.MSG_WAITALL)
                server.sendall(EMPTY % 201 + EMPTY % 202)
                client.recv(200)
            return listener.getsockname()[1]

    with flows_of(httpflow) as flows:
        port = in_namespace(work)
        records = flows.take()

    asked, answered = map(sums, ours(records, port))
    both = {("GET", "/200", 200): 2, ("GET", "/201", 201): 1}
    assert answered == both | {("GET", "/202", 202): 1}
    assert {key: asked[key] for key in both} == both


@pytest.mark.thorough
def test_of_many_connections_one_is_looked_at_and_all_again(httpflow):
    def work(port):
        for _ in range(160):
            raw(port, HEAD % 200)

    counted = []
    with flows_of(httpflow) as flows:
        for one_of in (8, 1):
            httpflow.dataset.sample(one_of)
            port, _ = talking(work)
            counted += [sum(r.fields["count"] for r in side) for side in ours(flows.take(), port)]
    few, few_served, *every = counted
    assert every == [160, 160]
    # 20 are expected, and each side chooses by itself; more than 60 or none is one run of a thousand million.
    assert 0 < few <= 60 and 0 < few_served <= 60


def test_what_is_no_http_is_soon_not_looked_at(httpflow):
    def work():
        with socket.create_server(("127.0.0.1", 0)) as listener, \
                socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            with server:
                for number in range(40):
                    client.sendall(b"SELECT %d" % number)
                    server.recv(100)
                client.sendall(HEAD % 200)
                server.recv(100)
                server.sendall(b"HTTP/1.1 200 Fine\r\n\r\n")
                client.recv(100)
            return listener.getsockname()[1]

    with flows_of(httpflow) as flows:
        port = in_namespace(work)
        records = flows.take()

    assert ours(records, port) == ([], [])
