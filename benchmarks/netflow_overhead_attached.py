"""Who looks on in `netflow_overhead`: netflow, programs that do nothing where its are, and its rivals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from benchmarks.startup import TRACEFS
from collector.config import Options
from collector.datasets.hooks import BACKENDS, attach_first
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
# A compiler is in it, and where the kernel is emulated it takes its time.
_READY_S = 300.0
_EMPTY = "".join(f"int {kind}__empty(void *ctx)\n{{\n\treturn 0;\n}}\n" for kind in ("kprobe", "kretprobe", "rawtp"))
_BY_TRACEPOINTS = ("tracepoint:sock:sock_send_length { @sent[args->sk] = sum(args->ret); } "
                   "tracepoint:sock:sock_recv_length { @received[args->sk] = sum(args->ret); }")
_BY_KPROBES = ("kprobe:tcp_sendmsg { @sent[arg0] = sum(arg2); } "
               "kprobe:tcp_cleanup_rbuf { @received[arg0] = sum(arg1); }")
_RIVALS = {"bpftrace": ("bpftrace", "-e"), "tcplife": ("tcplife-bpfcc",), "tcptop": ("tcptop-bpfcc", "60")}
# Ours says where our headers lie as soon as it compiles; bcc's tools want the kernel's.
_ENVIRONMENT = dict(os.environ)
NOBODY, EMPTY, NETFLOW = "nothing", "empty", "netflow"


def everybody() -> list[str]:
    """Those that can be attached on this kernel; of the others standard error says why not."""
    return [NOBODY, EMPTY, NETFLOW, *(name for name in _RIVALS if _runs(name))]


@contextmanager
def attached(name: str) -> Iterator[set[int]]:
    """The ids of the programs, while they are attached."""
    before = programs_now().keys()
    kernel = Kernel.running()
    if name == NOBODY:
        yield set()
    elif name == EMPTY:
        sets = {backend: [replace(hook, program=f"{hook.program.partition('__')[0]}__empty")
                          for hook in hooks if hook.required] for backend, hooks in HOOKS.items()}
        with Loaded(compile_source(_EMPTY), running_version_code(kernel.release)) as loaded:
            attach_first(name, loaded, sets, BACKENDS)
            yield programs_now().keys() - before
    elif name == NETFLOW:
        offsets = Offsets(BtfResolver().resolve(kernel, wanted((NETFLOW,))))
        with Netflow(offsets, Options("box", loopback=True), running_version_code(kernel.release)):
            yield programs_now().keys() - before
    else:
        with _rival(name, before):
            yield programs_now().keys() - before


@contextmanager
def _rival(name: str, before: Set[int]) -> Iterator[None]:
    command = [*TRACEFS, *_RIVALS[name]]
    if name == "bpftrace":
        command.append(_BY_KPROBES if _has_kprobes() else _BY_TRACEPOINTS)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
                          text=True, env=_ENVIRONMENT) as process:
        try:
            deadline = time.monotonic() + _READY_S
            while not programs_now().keys() - before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(1)  # the rest of its programs
            if process.poll() is not None or not programs_now().keys() - before:
                _end(process, signal.SIGKILL)
                said = process.stderr.read().strip().splitlines() if process.stderr else []
                raise RuntimeError(said[-1] if said else "it attaches nothing")
            yield
        finally:
            _end(process, signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                _end(process, signal.SIGKILL)


def _end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _has_kprobes() -> bool:
    return Path("/sys/bus/event_source/devices/kprobe").exists()


def _runs(name: str) -> bool:
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
