"""The traffic that `netflow_overhead` measures by: each load moves units over loopback, and ends."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import web
from benchmarks.measure import timed
from kcompat.errors import KcompatError

_SOURCE = Path(__file__).with_name("netflow_load.c")
_WRK = ("wrk", "-t1", "-c8", "-H", "Connection: close")
# One process alone: what it took is known when it has ended.
_NGINX = f"""
master_process off; daemon off; pid {{home}}/pid; error_log {{home}}/error.log;
events {{{{ worker_connections 768; }}}}
http {{{{
  {web.HTTP}
  server {{{{
    listen 127.0.0.1:{{port}};
    {web.SITE}
  }}}}
}}}}
"""


class Load(NamedTuple):
    """`run(seconds)` gives how many units were moved; of what a table shows, `unit` has `units` of them."""

    title: str
    unit: str
    units: float
    run: Callable[[float], float]


@contextmanager
def loads(bytes_a_second: int) -> Iterator[Mapping[str, Load]]:
    """By name; iperf3 moves so many bytes for each second. Raises KcompatError without a compiler."""
    with tempfile.TemporaryDirectory(prefix="kcompat-bench-") as directory:
        program = Path(directory) / "load"
        built = subprocess.run(["gcc", "-O2", "-o", str(program), str(_SOURCE)], capture_output=True, text=True,
                               check=False)
        if built.returncode:
            raise KcompatError(f"{_SOURCE.name} does not compile: {built.stderr.strip()}")
        found = {
            "stream": Load("a stream by calls of 16 KiB", "MB", 1e6, partial(_ours, program, "stream")),
            "short": Load("short connections", "connections", 1, partial(_ours, program, "short")),
        }
        if shutil.which("iperf3"):
            found = {"iperf3": Load("iperf3's stream, by calls of 128 KiB, its default", "MB", 1e6,
                                    partial(_iperf3, bytes_a_second))} | found
        if shutil.which("nginx") and shutil.which("wrk"):
            found["web"] = Load("short connections of wrk to nginx, each for Debian's own page", "connections", 1,
                                partial(_web, Path(directory)))
        yield found


def _ours(program: Path, kind: str, seconds: float) -> float:
    done = subprocess.run([str(program), kind, str(seconds)], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0])


def _iperf3(bytes_a_second: int, seconds: float) -> float:
    """A server that ends with its first client, and the client. Raises KcompatError with what it says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    command = ["iperf3", "--server", "--one-off", "--forceflush", "--bind", "127.0.0.1", "--port", port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if "listening" in line:
                    break
            done = subprocess.run(["iperf3", "--client", "127.0.0.1", "--port", port, "--json", "--bytes",
                                   str(int(bytes_a_second * seconds))], capture_output=True, text=True, check=False)
            told = json.loads(done.stdout)
            if "error" in told:
                raise KcompatError(f"iperf3: {told['error']}")
            server.communicate(timeout=10)
            return float(told["end"]["sum_received"]["bytes"])
        finally:
            server.kill()


def _web(home: Path, seconds: float) -> float:
    """A server that has begun and ended, and its client. Raises KcompatError with what either says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (home / "nginx.conf").write_text(_NGINX.format(home=home, port=port))
    with subprocess.Popen(["nginx", "-c", home / "nginx.conf", "-e", home / "error.log"]) as server:
        try:
            while server.poll() is None and not _listens(port):
                time.sleep(0.001)
            if server.poll() is not None:
                raise KcompatError(f"nginx does not start: {(home / 'error.log').read_text().strip()}")
            said = timed((*_WRK, f"-d{max(1, round(seconds))}s", f"http://127.0.0.1:{port}/"))[1].decode()
            server.send_signal(signal.SIGQUIT)
            server.wait(10)
        finally:
            server.kill()
    return web.requests_of(said)


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0
