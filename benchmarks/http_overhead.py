"""What httpflow costs: wrk against nginx, and a stream that is no HTTP, with it, without, and beside a bpftrace script.

``python -m benchmarks http_overhead``. All of it over the loopback interface of a network namespace of its own.
``python -m benchmarks.http_overhead stream SECONDS`` prints the gigabits a second it moved.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import measure, web
from benchmarks.measure import Line, Repetitions, Result, Target, children_s, of, timed
from benchmarks.startup import TRACEFS, cpu_s, running
from collector.config import Options
from kcompat.errors import KcompatError, Missing
from kcompat.probe import require_bpf

TITLE = "HTTP with httpflow and without"
_PORT, _TLS_PORT, _SLOW_PORT, _SITE_PORT, _SLOW_S, _SLOW = 8080, 8443, 8081, 8082, 0.05, 20
_RUN_S, _SETTLE_S = 3.0, 1.5
_WRK = ("wrk", "-t1", "-c16", f"-d{_RUN_S:g}s")
_PLAIN, _TLS, _SITE = (f"{place}/" for place in (
    f"http://127.0.0.1:{_PORT}", f"https://127.0.0.1:{_TLS_PORT}", f"http://127.0.0.1:{_SITE_PORT}"))
_CHUNK = 1 << 18
_CONFIG = f"""
worker_processes 1; daemon off; pid {{home}}/pid; error_log {{home}}/error.log; user root;
events {{{{ }}}}
http {{{{
  access_log off; keepalive_requests 10000000;
  {web.HTTP}
  log_format took '$request_time';
  server {{{{
    listen 127.0.0.1:{{port}}; listen 127.0.0.1:{{tls_port}} ssl;
    ssl_certificate {{home}}/certificate; ssl_certificate_key {{home}}/key;
    location / {{{{ return 200 "hello\\n"; }}}}
    location /slow {{{{ proxy_pass http://127.0.0.1:{{slow_port}}; access_log {{home}}/took.log took; }}}}
  }}}}
  server {{{{
    listen 127.0.0.1:{{site_port}};
    {web.SITE}
  }}}}
}}}}
"""
# What a script of the same reach would count, with nothing read and nothing paired.
_SCRIPT = ('BEGIN { printf("ready\\n"); } ' + " ".join(
    f"tracepoint:syscalls:sys_exit_{call} {{ @[comm] = count(); }}"
    for call in ("read", "write", "readv", "writev", "sendto", "recvfrom", "sendmsg", "recvmsg", "sendfile64")))


def run(repetitions: Repetitions) -> Result:
    """Raises Missing without nginx or wrk, or where nothing can be collected."""
    require_bpf()
    for tool in ("nginx", "openssl", "wrk"):
        if not shutil.which(tool):
            raise Missing(f"{tool} is not installed: apt-get install nginx-light openssl wrk")
    before = measure.load()
    remarks: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kcompat-bench-") as directory, ExitStack() as stack:
        home = Path(directory)
        namespace = stack.enter_context(_namespace())
        stack.enter_context(_serving(namespace, home))
        observers: dict[str, _Observe] = {"httpflow": lambda: _httpflow(home, Options().interval_s)}
        if shutil.which("bpftrace"):
            observers["bpftrace counting the same system calls"] = _bpftrace
        else:
            remarks.append("bpftrace is not installed: nothing to compare with")
        lines = [*_compared(repetitions, "requests", "req/s", 5, lambda: _requests(namespace, home, _PLAIN), observers),
                 *_compared(repetitions, "requests for Debian's own page", "req/s", 5,
                            lambda: _requests(namespace, home, _SITE), observers),
                 *_compared(repetitions, "requests over TLS", "req/s", 10, lambda: _requests(namespace, home, _TLS),
                            observers),
                 *_compared(repetitions, "a stream that is no HTTP", "Gbit/s", 1, lambda: _stream(namespace),
                            observers)]
        lines.append(_latency(namespace, home))
    return Result("http_overhead", TITLE, tuple(lines), tuple(remarks), (before, measure.load()), repetitions.begun,
                  repetitions.busy)


class _Rate(NamedTuple):
    """How much a second, and the seconds of processor that one took those who did it."""

    rate: float
    cpu_s: float


# Something that looks on meanwhile.
_Observe = Callable[[], AbstractContextManager[Any]]


def _compared(repetitions: Repetitions, what: str, unit: str, target: float, work: Callable[[], _Rate],
              observers: Mapping[str, _Observe]) -> Iterator[Line]:
    """Each repetition without anybody and with each observer, in an order drawn anew: all meet the same machine."""
    observe = (nullcontext, *observers.values())

    def once() -> list[_Rate]:
        rates = {}
        for number in random.sample(range(len(observe)), len(observe)):
            with observe[number]():
                rates[number] = work()
        return [rates[number] for number in range(len(observe))]

    rounds = repetitions.of(once)
    yield of(f"{what}: nobody looks", (rates[0].rate for rates in rounds), unit=unit)
    for number, name in enumerate(observers, 1):
        goal = Target(target) if name == "httpflow" else None
        yield of(f"{what}: with {name}", (rates[number].rate for rates in rounds), unit=unit)
        yield of(f"{what}: fewer with {name}", (100 * (1 - rates[number].rate / rates[0].rate) for rates in rounds),
                 unit="%", target=goal)
        yield of(f"{what}: more processor time each with {name}",
                 (100 * (rates[number].cpu_s / rates[0].cpu_s - 1) for rates in rounds), unit="%", target=goal,
                 note=f"of those at work, {1e6 * rounds[0][0].cpu_s:.1f} us before")


@contextmanager
def _httpflow(home: Path, interval_s: float) -> Iterator[Path]:
    """Collecting everything, loopback too, and through with its start; gives the file its records are in."""
    records = home / "records.jsonl"
    command = (str(Path(sys.executable).with_name("kcompat")), "--db", str(home / "offsets.db"), "collect",
               "--datasets", "httpflow", "--loopback", "--interval", str(interval_s), "--output", f"jsonl:{records}")
    with running(command, {"KCOMPAT_RUN": str(home / "run")}) as process:
        _await(process, "collecting")
        time.sleep(_SETTLE_S)
        yield records


@contextmanager
def _bpftrace() -> Iterator[None]:
    with running((*TRACEFS, "bpftrace", "-e", _SCRIPT), {}) as process:
        _await(process, "ready")
        time.sleep(_SETTLE_S)
        yield


def _await(process: subprocess.Popen[str], word: str) -> None:
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said = line.strip() or said
        if word in line:
            return
    raise KcompatError(f"it ended before it was ready: {said}")


@contextmanager
def _namespace() -> Iterator[str]:
    name = f"kcompat-bench-{os.getpid()}"
    timed(("ip", "netns", "add", name))
    try:
        timed(("ip", "-n", name, "link", "set", "lo", "up"))
        yield name
    finally:
        timed(("ip", "netns", "del", name))


def _within(namespace: str, *command: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace, *command)


@contextmanager
def _serving(namespace: str, home: Path) -> Iterator[None]:
    """nginx, and behind it a server that sleeps."""
    (home / "nginx.conf").write_text(_CONFIG.format(home=home, port=_PORT, tls_port=_TLS_PORT, slow_port=_SLOW_PORT,
                                                    site_port=_SITE_PORT))
    timed(("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
           "-subj", "/CN=kcompat.test", "-keyout", str(home / "key"), "-out", str(home / "certificate")))
    nginx = _within(namespace, "nginx", "-c", str(home / "nginx.conf"), "-e", str(home / "error.log"))
    slow = _within(namespace, sys.executable, "-m", "benchmarks.http_overhead", "slow")
    with running(nginx, {}) as process, running(slow, {}) as sleeper:
        _await(sleeper, "ready")
        give_up = time.monotonic() + 20
        while not (home / "pid").exists():
            if process.poll() is not None or time.monotonic() > give_up:
                raise KcompatError(f"nginx does not start: {(home / 'error.log').read_text().strip()}")
            time.sleep(0.02)
        yield


def _requests(namespace: str, home: Path, url: str) -> _Rate:
    """The processor time is wrk's and nginx's: on a machine where others are at work it says more than the rate."""
    workers = _children(int((home / "pid").read_text()))
    before_s = children_s() + sum(map(cpu_s, workers))
    said = timed(_within(namespace, *_WRK, url))[1].decode()
    spent_s = children_s() + sum(map(cpu_s, workers)) - before_s
    count = web.requests_of(said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if not rate:
        raise KcompatError(f"wrk tells no rate: {said}")
    return _Rate(float(rate[1]), spent_s / count)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _stream(namespace: str) -> _Rate:
    before_s = children_s()
    command = _within(namespace, sys.executable, "-m", "benchmarks.http_overhead", "stream", str(_RUN_S))
    rate = float(timed(command)[1])
    return _Rate(rate, (children_s() - before_s) / (rate * _RUN_S))


def _latency(namespace: str, home: Path) -> Line:
    """Of a response that takes 50 ms, ours over nginx's own: both of nginx's side."""
    with _httpflow(home, interval_s=1) as records:
        for _ in range(_SLOW):
            timed(_within(namespace, "curl", "-sS", "-o", "/dev/null", f"http://127.0.0.1:{_PORT}/slow"))
        time.sleep(3)
    told = [json.loads(line) for line in records.read_text().splitlines()]
    ours = [(r["fields"]["latency"] / 1e9, r["fields"]["count"]) for r in told
            if r["fields"]["path"] == "/slow" and r["tags"]["src_port"] == str(_PORT)]
    took_s = [float(line) for line in (home / "took.log").read_text().split()]
    count = sum(number for _, number in ours)
    if not count or not took_s:
        raise KcompatError("no slow response was seen")
    ours_s, theirs_s = sum(s * number for s, number in ours) / count, sum(took_s) / len(took_s)
    return of("latency of responses that take 50 ms: off nginx's own", (100 * abs(ours_s / theirs_s - 1),), unit="%",
              target=Target(20), note=f"{count} of {_SLOW} seen, {ours_s * 1000:.1f} ms; nginx says "
                                      f"{theirs_s * 1000:.1f} ms")


def stream(seconds: float) -> float:
    """Gigabits a second from one socket to another, by two threads."""
    with socket.create_server(("127.0.0.1", 0)) as listener, \
            socket.create_connection(listener.getsockname()) as sender, listener.accept()[0] as receiver:
        def receive() -> None:
            buffer = bytearray(_CHUNK)
            while receiver.recv_into(buffer):
                pass

        reader = threading.Thread(target=receive)
        reader.start()
        moved, begun, data = 0, time.perf_counter(), bytes(_CHUNK)
        while time.perf_counter() - begun < seconds:
            sender.sendall(data)
            moved += len(data)
        took_s = time.perf_counter() - begun
        sender.shutdown(socket.SHUT_WR)
        reader.join()
    return moved * 8 / took_s / 1e9


class _Slow(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(_SLOW_S)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    if sys.argv[1] == "stream":
        print(stream(float(sys.argv[2])))
    else:
        with ThreadingHTTPServer(("127.0.0.1", _SLOW_PORT), _Slow) as server:
            print("ready", flush=True)
            server.serve_forever()
