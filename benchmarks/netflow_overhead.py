"""What netflow costs the traffic that it counts, beside a bpftrace byte counter and bcc's tools.

``sudo python -m benchmarks.netflow_overhead``: the same load (`netflow_load.c`) with nothing attached and with each, in
turns, so that what else the machine does falls on all of them alike. `empty` is programs that do nothing, where
netflow's are: its loss is the kernel's way to a program, which none can do without, and what a run of them seems to
take is the kernel's own clock of programs. Taken off, the runs of the others are a share of what moves the bytes, which
a busy machine disturbs less than the loss of throughput.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

from collector.config import Options
from collector.datasets.netflow import Netflow
from collector.datasets.netflow_hooks import HOOKS
from collector.pipeline import wanted
from kcompat.bpf import compile_source
from kcompat.btf import BtfResolver
from kcompat.kernel import Kernel
from kcompat.load import Loaded
from kcompat.offsets import Offsets
from kcompat.version import running_version_code

_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_READY_S = 30.0
_TRACEFS = ("unshare", "--mount", "sh", "-c",
            'mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null; exec "$@"', "sh")
_COUNTER = ("tracepoint:sock:sock_send_length { @sent[args->sk] = sum(args->ret); } "
            "tracepoint:sock:sock_recv_length { @received[args->sk] = sum(args->ret); }")
RIVALS = {"bpftrace": ("bpftrace", "-e", _COUNTER), "tcplife": ("tcplife-bpfcc",), "tcptop": ("tcptop-bpfcc", "60")}
_EMPTY = "int rawtp__empty(void *ctx)\n{\n\treturn 0;\n}\n"
LOADS = ("stream", "short")
_STREAM_CALL = 16384


class Measured(NamedTuple):
    """Units in a second of processor time, ns that a run of the programs took, and runs for a call or connection."""

    rate: float
    run_ns: float
    runs: float


Results = dict[tuple[str, str], list[Measured]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        load = str(Path(directory) / "load")
        subprocess.run(["gcc", "-O2", "-o", load, str(Path(__file__).with_name("netflow_load.c"))], check=True)
        who = ["nothing", "empty", "netflow", *(name for name in RIVALS if runs(name))]
        print(f"load of the machine {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors, "
              f"kernel {os.uname().release}, {told.rounds} rounds of {told.seconds:g} s")
        results = measured(load, who, told.rounds, told.seconds)
    print("\n| attached | stream, MB a processor second | loss | short ones a processor second | loss | "
          "ns a run, in streams | short ones | share of a stream | of short ones |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in who:
        cells = []
        for kind in LOADS:
            rates = [one.rate for one in results[name, kind]]
            # Each round's own difference from nothing: what a busy machine does between rounds is in neither.
            losses = [1 - rate / bare.rate for rate, bare in zip(rates, results["nothing", kind], strict=True)]
            cells += [f"{median(rates) / (1e6 if kind == 'stream' else 1):.0f}", f"{100 * median(losses):+.1f} %"]
        runs_ns = [f"{median(one.run_ns for one in results[name, kind]):.0f}" for kind in LOADS]
        shares = [f"{100 * share(results, name, kind):.1f} %" for kind in LOADS]
        print("| " + " | ".join([name, *cells, *runs_ns, *shares]) + " |")


def share(results: Results, name: str, kind: str) -> float:
    """Of the processor time that a unit takes with nothing attached, what the programs' runs for it are."""
    clock_ns = median(one.run_ns for one in results["empty", kind])
    told = results[name, kind]
    run_ns, runs_a_unit = median(one.run_ns for one in told), median(one.runs for one in told)
    calls_a_second = median(one.rate for one in results["nothing", kind]) / calls_of(kind)
    return max(run_ns - clock_ns, 0) * runs_a_unit * calls_a_second / 1e9


def calls_of(kind: str) -> int:
    """How many units go in one call."""
    return _STREAM_CALL if kind == "stream" else 1


def measured(load: str, who: list[str], rounds: int, seconds: float) -> Results:
    """Each round's; the order is drawn anew for each. What others' traffic makes the programs run is in their costs."""
    found: Results = defaultdict(list)
    for _ in range(rounds):
        for name in random.sample(who, len(who)):
            with attached(name) as programs:
                for kind in LOADS:
                    units, processor_s = once(load, kind, seconds)
                    count, ns, counted = 0, 0, 1.0
                    if programs:
                        with counting():
                            before = spent(programs)
                            counted, _ = once(load, kind, seconds / 2)
                            count, ns = (after - was for after, was in zip(spent(programs), before, strict=True))
                    found[name, kind].append(Measured(units / processor_s, ns / max(count, 1),
                                                      count / counted * calls_of(kind)))
    return found


def once(load: str, kind: str, seconds: float) -> tuple[float, float]:
    """Units, and both ends' processor time for them: how fast they go by the clock is others' doing as well."""
    before = _processor_s()
    units = float(subprocess.run([load, kind, str(seconds)], check=True, capture_output=True,
                                 text=True).stdout.split()[0])
    return units, _processor_s() - before


def _processor_s() -> float:
    told = resource.getrusage(resource.RUSAGE_CHILDREN)
    return told.ru_utime + told.ru_stime


@contextmanager
def attached(name: str) -> Iterator[set[int]]:
    """The programs' ids, while they are attached."""
    if name == "nothing":
        yield set()
        return
    before = programs_now().keys()
    kernel = Kernel.running()
    if name == "empty":
        with Loaded(compile_source(_EMPTY), running_version_code(kernel.release)) as loaded:
            for hook in HOOKS["rawtp"]:
                if hook.required:
                    loaded.attach("rawtp__empty", hook.symbols[0])
            yield programs_now().keys() - before
        return
    if name == "netflow":
        offsets = Offsets(BtfResolver().resolve(kernel, wanted(("netflow",))))
        with Netflow(offsets, Options("box", loopback=True), running_version_code(kernel.release)):
            yield programs_now().keys() - before
        return
    with subprocess.Popen([*_TRACEFS, *RIVALS[name]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as process:
        try:
            deadline = time.monotonic() + _READY_S
            while not (made := programs_now().keys() - before) and process.poll() is None:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            time.sleep(1)  # the rest of its programs
            made = programs_now().keys() - before
            if process.poll() is not None or not made:
                raise RuntimeError(f"{name} does not run here")
            yield made
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def runs(name: str) -> bool:
    try:
        with attached(name):
            return True
    except (OSError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False


@contextmanager
def counting() -> Iterator[None]:
    """The kernel's own clock of BPF programs, which itself costs each run some 20 ns, runs."""
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


def spent(programs: set[int]) -> tuple[int, int]:
    """How often these ran, and for how many ns."""
    now = [told for number, told in programs_now().items() if number in programs]
    return sum(runs for runs, _ in now), sum(ns for _, ns in now)


def programs_now() -> dict[int, tuple[int, int]]:
    """Every BPF program's id, how often it ran and for how many ns."""
    told = subprocess.run(["bpftool", "-j", "prog", "show"], check=True, capture_output=True, text=True).stdout
    return {one["id"]: (one.get("run_cnt", 0), one.get("run_time_ns", 0)) for one in json.loads(told)
            if "id" in one}


if __name__ == "__main__":
    main()
