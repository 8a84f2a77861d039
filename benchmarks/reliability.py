"""Two hundred guesses in a row on a machine that is kept busy: how often one is wrong, unsure or slow.

``python -m benchmarks reliability``
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import quantiles

from benchmarks import measure
from benchmarks.measure import Repetitions, Result, Target, of
from guessers.guess import guess
from kcompat.btf import BtfResolver
from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel
from kcompat.offsets import Offsets, State
from kcompat.probe import require_bpf

TITLE = "Guesses in a row under load"
_GUESSES = 200  # for the usual fifteen repetitions; a look at whether it works at all makes fewer
_USUAL = 15
_CONNECTIONS_S, _P99_MS = 200, 2000
_NAMED = 5
# Killed outright we take nothing down ourselves: the kernel ends them with us (PR_SET_PDEATHSIG, SIGKILL).
_WITH_US = "import ctypes; ctypes.CDLL(None).prctl(1, 9)\n"
_NEIGHBOUR = f"""{_WITH_US}
import socket, time
server = socket.create_server(("127.0.0.1", 0), backlog=500)
begun, count = time.monotonic(), 0
while True:
    with socket.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
        client.send(b"x" * 100)
        accepted.recv(100)
    count += 1
    time.sleep(max(0, begun + count / {_CONNECTIONS_S} - time.monotonic()))
"""
_SPINNER = f"{_WITH_US}while True: pass"


def run(repetitions: Repetitions) -> Result:
    """Raises Missing or Unsupported where no guess is possible."""
    require_bpf()
    number = max(1, _GUESSES * repetitions.times // _USUAL)
    before = measure.load()
    truth = Offsets(BtfResolver().resolve(Kernel.running(), CATALOGUE))
    guess()  # so that the object is at hand
    seconds, rounds, verdicts, untold = [], [], Counter[str](), Counter[str]()
    with _load():
        for _ in range(number):
            started = time.monotonic()
            found = guess()
            seconds.append(time.monotonic() - started)
            rounds.append(found.stats.rounds)
            verdicts.update(_judged(found.offsets, truth))
            untold.update(f"{f}: {o.reason}" for f, o in found.offsets.items() if o.state is State.UNKNOWN)
    lines = (
        of(f"one of {number} guesses", seconds, note=f"rounds {min(rounds)} to {max(rounds)}"),
        of("one guess, p99", [quantiles(seconds, n=100, method="inclusive")[-1]], target=Target(_P99_MS)),
        of("one guess, the slowest", [max(seconds)]),
        *(of(f"fields {what}", [float(verdicts[what])], unit="", target=Target(1) if what in _NEVER else None,
             note=f"of {number * len(CATALOGUE)}") for what in ("right", *_NEVER, "unverified")),
    )
    remark = (f"beside a process that opens {_CONNECTIONS_S} connections a second and one that spins for each two "
              f"processors ({_spinners()} here)")
    left_open = (f"left open in {times} of {number}: {told}" for told, times in untold.most_common(_NAMED))
    return Result("reliability", TITLE, lines, (remark, *left_open), (before, measure.load()), number, number)


_NEVER = ("wrong", "ambiguous")


def _judged(offsets: Offsets, truth: Offsets) -> Iterator[str]:
    for field, offset in offsets.items():
        if offset.state is State.UNKNOWN:
            yield str(offset.verdict)
        else:
            yield "right" if offset.same_place(truth[field]) else "wrong"


def _spinners() -> int:
    return max(1, len(os.sched_getaffinity(0)) // 2)


@contextmanager
def _load() -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in (_NEIGHBOUR, *[_SPINNER] * _spinners())]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
