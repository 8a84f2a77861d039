"""The traffic that `netflow_overhead` measures by: each load moves units over loopback, and ends."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kcompat.errors import KcompatError

_SOURCE = Path(__file__).with_name("netflow_load.c")


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
