"""What befalls a collector in a soak: sinks that fail, namespaces that come and go, programs that are upgraded."""

from __future__ import annotations

import fcntl
import gzip
import os
import pty
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks import soak_load
from benchmarks.measure import REPOSITORY
from benchmarks.soak_books import ADDRESSES, TYPED, Books
from guessers.namespace import Netns, in_own_thread
from kcompat.errors import KcompatError

PATIENCE_S = 120.0
_SIOCSIFADDR = 0x8916
_LIFE_S = 1.5
_PROMPT = b"soak-prompt> "
_LINES = 5
# What the server of the failing sink does, one after the other.
_PHASES = ("takes", "503", "takes", "says nothing", "takes", "is away")


class FailingSink:
    """A server of line protocol that fails in turns, and knows what it has taken, by the lines' hashes."""

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.again = self.failures = 0
        self.phase = _PHASES[0]
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self._open()

    def turn(self, number: int) -> None:
        """Into the phase of that number, counted from 0."""
        self.be(_PHASES[number % len(_PHASES)])

    def be(self, phase: str) -> None:
        self.phase = phase
        if phase == "is away":
            self.close()
        elif self._server is None:
            self._open()

    def take(self, body: str) -> int:
        if self.phase == "says nothing":
            time.sleep(5)
        if self.phase != "takes":
            self.failures += 1
            return 503
        for line in map(hash, body.splitlines()):
            self.again += line in self.taken
            self.taken.add(line)
        return 204

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _open(self) -> None:
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                self.send_response(sink.take(body.decode()))
                self.send_header("Content-Length", "0")
                # A kept connection would outlive a server that is away.
                self.send_header("Connection", "close")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """What it does is counted."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()


def brief_namespace(books: Books, number: int) -> None:
    """A namespace with traffic in it that is gone a moment later."""
    address = f"{ADDRESSES}9.{1 + number % 200}"

    def body(_: bytes) -> None:
        namespace = Netns.fresh()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            request = struct.pack("<16sHH4s8x", b"lo", socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(control, _SIOCSIFADDR, request)
        with socket.create_server((address, soak_load.CHURN_PORT)) as server:
            client = soak_load.opened(books, address, soak_load.CHURN_PORT)
            accepted = soak_load.Connection(server.accept()[0], books, "incoming", soak_load.CHURN_PORT)
            client.send(b"n" * (1 + number % 100))
            accepted.recv()
            # The other end is this thread's too: nobody may wait for anybody.
            accepted.end(first=False)
            client.end(first=True)
        time.sleep(_LIFE_S)
        namespace.close()

    in_own_thread(body)


def replace(original: Path, copy: Path) -> None:
    """As a package manager does it: a new file takes the old one's name, those who use the old one keep it."""
    copy.parent.mkdir(exist_ok=True)
    new = copy.with_name(copy.name + ".new")
    shutil.copy2(original, new)
    new.replace(copy)


def typed_in(bash: Path, books: Books, hooked: Callable[[int], None]) -> None:
    """A few lines typed into a bash of that file, once the collector reads there."""
    ours, theirs = pty.openpty()
    environment = {"PS1": _PROMPT.decode(), "TERM": "xterm", "PATH": os.environ["PATH"], "HISTFILE": ""}
    with subprocess.Popen([bash, "--norc", "--noprofile", "-i"], stdin=theirs, stdout=theirs, stderr=theirs,
                          env=environment, start_new_session=True) as process:
        os.close(theirs)
        try:
            _prompted(ours)
            hooked(process.pid)
            # The line that was being read when it was hooked is not seen: it is none of ours.
            for line in ("true", *(f"{TYPED}{number}" for number in range(_LINES))):
                os.write(ours, line.encode() + b"\r")
                _prompted(ours)
                books.add("bash", "root", count=line.startswith(TYPED))
        finally:
            process.kill()
            os.close(ours)


def _prompted(fd: int) -> None:
    said, deadline = b"", time.monotonic() + PATIENCE_S
    while _PROMPT not in said:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise KcompatError(f"bash does not prompt: {said[-200:]!r}")
        said += os.read(fd, 65_536)


class Worker:
    """A process of the load in a namespace; `end` takes its counts into the books."""

    def __init__(self, netns: str, *arguments: str, libraries: Path | None = None) -> None:
        environment: Mapping[str, str] = {"LD_LIBRARY_PATH": str(libraries)} if libraries else {}
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", netns, sys.executable, "-m", "benchmarks.soak_load", *arguments], cwd=REPOSITORY,
            env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self._what = arguments[0]
        if not self._process.stdout or self._process.stdout.readline() != "ready\n":
            raise KcompatError(f"the load's {self._what} did not begin")

    def begin(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self, books: Books) -> None:
        told, _ = self._process.communicate(timeout=PATIENCE_S)
        if self._process.returncode:
            raise KcompatError(f"the load's {self._what} failed: exit {self._process.returncode}")
        books.take_in(told)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
