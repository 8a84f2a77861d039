"""From the command to the first event counted, and what then stays in memory, beside tools that do far less.

``python -m benchmarks startup``
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import REPOSITORY, Line, Repetitions, Result, Target, of
from collector.pipeline import DATASETS
from kcompat.errors import KcompatError, Missing
from kcompat.probe import require_bpf

TITLE = "From the command to the first event, and the memory a collector keeps"
_WARM_S, _MEMORY_MB = 1.0, 80
_PATIENCE_S, _SETTLE_S = 30.0, 3.0
TRACEFS = ("unshare", "--mount", "sh", "-c",
            'mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null; exec "$@"', "sh")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Started:
    """Seconds until it was ready and of processor until then, and megabytes some seconds later."""

    ready_s: float
    cpu_s: float
    resident_mb: float
    anonymous_mb: float


def run(repetitions: Repetitions) -> Result:
    """Raises Missing or Unsupported where nothing can be collected."""
    require_bpf()
    before = measure.load()
    remarks: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kcompat-bench-") as directory:
        lines = list(_ours(repetitions, Path(directory)))
    for name, command, ready in _rivals():
        try:
            started = repetitions.of(partial(_started, command, ready, {}))
        except KcompatError as error:
            remarks.append(f"{name}: not measured: {error}")
            continue
        lines += _lines(name, started)
    return Result("startup", TITLE, tuple(lines), tuple(remarks), (before, measure.load()), repetitions.begun,
                  repetitions.busy)


def _ours(repetitions: Repetitions, home: Path) -> Iterable[Line]:
    # Python's own compiled files, as an installed package has them, whatever this shell keeps it from writing.
    environment = {"KCOMPAT_CACHE": str(home), "KCOMPAT_RUN": str(home / "run"), "PYTHONDONTWRITEBYTECODE": "",
                   "PYTHONPYCACHEPREFIX": str(home / "python")}
    command = (str(Path(sys.executable).with_name("kcompat")), "--db", str(home / "offsets.db"), "collect",
               "--datasets", ",".join(DATASETS), "--interval", "1", "--output", f"jsonl:{home / 'records.jsonl'}")
    cold = _started(command, "collecting", environment)
    yield of("kcompat, cold: nothing known, nothing compiled", [cold.ready_s],
             note=f"once; then {cold.resident_mb:.0f} MB resident: the compiler ran in a child")
    warm = repetitions.of(partial(_started, command, "collecting", environment))
    yield from _lines(f"kcompat, warm, {len(DATASETS)} datasets", warm, _WARM_S * 1000, _MEMORY_MB)


def _lines(name: str, started: Sequence[Started], ready_ms: float | None = None,
           memory_mb: float | None = None) -> Iterable[Line]:
    cpu_ms = of("", (one.cpu_s for one in started)).median
    yield of(f"{name}: until it counts", (one.ready_s for one in started),
             target=Target(ready_ms) if ready_ms else None, note=f"processor {cpu_ms:.0f} ms")
    anonymous = of("", (one.anonymous_mb for one in started), unit="MB").median
    yield of(f"{name}: resident", (one.resident_mb for one in started), unit="MB",
             target=Target(memory_mb) if memory_mb else None,
             note=f"{anonymous:.0f} MB of it its own, the rest of files")


def _rivals() -> Iterable[tuple[str, tuple[str, ...], str]]:
    """One tracepoint each, and no offsets to find. tracefs is theirs to have: in a mount namespace of their own."""
    program = 'BEGIN { printf("ready\\n"); } tracepoint:sock:inet_sock_set_state { @[comm] = count(); }'
    yield "bpftrace, one tracepoint", (*TRACEFS, "bpftrace", "-e", program), "ready"
    yield "tcplife-bpfcc", (*TRACEFS, sys.executable, "-u", "/usr/sbin/tcplife-bpfcc"), "PID"


def _started(command: Sequence[str], ready: str, environment: Mapping[str, str]) -> Started:
    """Raises KcompatError when it ends before it is ready."""
    begun = time.perf_counter()
    with running(command, environment) as process:
        said = ""
        assert process.stdout is not None
        for line in process.stdout:
            said = line.strip() or said
            if ready in line:
                break
        else:
            raise KcompatError(f"it ended before it was ready: {said}")
        ready_s = time.perf_counter() - begun
        spent_s = cpu_s(process.pid)
        time.sleep(_SETTLE_S)
        return Started(ready_s, spent_s, *_memory_mb(process.pid))


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    try:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise Missing(f"{command[0]} is not installed") from error
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                print(f"it does not end by SIGTERM, and is killed: {' '.join(command)}", file=sys.stderr)
            finally:
                process.kill()


def cpu_s(pid: int) -> float:
    """Of the process and of the children it has waited for. proc_pid_stat(5)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) * _TICK_S


def _memory_mb(pid: int) -> tuple[float, float]:
    held = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(held["VmRSS"].split()[0]) / 1024, int(held["RssAnon"].split()[0]) / 1024
