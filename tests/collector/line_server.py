"""A real HTTP server on 127.0.0.1 that takes line protocol, and refuses, fails, stalls or hangs up when told to."""

import gzip
import os
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from line_protocol_parser import parse_line

from collector.record import Record

DEADLINE_S = 60


def points(count, first=0, measurement="netflow"):
    return [Record(measurement, {"host": "box"}, {"n": number}, number + 1) for number in range(first, first + count)]


def wait_until(true, deadline_s=DEADLINE_S):
    end = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


@contextmanager
def unreadable(directory, names="*.chunks"):
    """What this process has open there answers EIO to whoever reads or writes, as a broken disk does."""
    found = {int(one.name): one.readlink() for one in Path("/proc/self/fd").iterdir() if one.is_symlink()}
    fds = [fd for fd, path in found.items() if path.is_relative_to(directory) and path.match(names)]
    assert fds
    good = [os.dup(fd) for fd in fds]
    with open("/proc/self/mem", "r+b", buffering=0) as bad:  # noqa: PTH123
        for fd in fds:
            os.dup2(bad.fileno(), fd, inheritable=False)
    try:
        yield
    finally:
        for fd, one in zip(fds, good, strict=True):
            os.dup2(one, fd, inheritable=False)
            os.close(one)


class Server(ThreadingHTTPServer):
    """Answers with `answers` in turn (a status, "hang up", "stall" or "dribble"), then `always`; keeps what it took.

    An answer may also be made of the request, by a function.
    """

    daemon_threads = True

    def __init__(self, port=0):
        self.answers, self.requests, self.accepted, self.reports, self.always = [], [], [], [], 200
        self.released = threading.Event()
        super().__init__(("127.0.0.1", port), Handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.address}/v1/write/network?input=ebpf-net&token=tkn_secret"

    def handle_error(self, request, client_address):
        """A client that gave up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/lasterror":
            self.server.reports.append(body)
            return self.say(200)
        lines = [parse_line(line)["fields"]["n"] for line in gzip.decompress(body).decode().split("\n")]
        self.server.requests.append((self.path, dict(self.headers), lines))
        answer = self.server.answers.pop(0) if self.server.answers else self.server.always
        if callable(answer):
            answer = answer(self)
        if answer == "stall":
            self.server.released.wait(DEADLINE_S)
            answer = 200
        if answer == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        if answer == "dribble":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            while not self.server.released.wait(0.05):
                self.wfile.write(b"x")
            return None
        if answer < 300:
            self.server.accepted += lines
        return self.say(answer)

    def say(self, status):
        self.send_response(status)
        text = b"" if status == 204 else b'{"error_code": "datakit.badPoint",\n "message": "no such thing"}'
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@contextmanager
def serving(port=0, certificate=None):
    server = Server(port)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
