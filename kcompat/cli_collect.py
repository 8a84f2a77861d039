"""`kcompat collect` and `kcompat render`: offsets in, flows or C out, with signals turned into a last flush."""

from __future__ import annotations

import signal
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from collector import pipeline
from collector.canary import Refuted
from collector.config import Exclusions, NetflowOptions
from collector.sinks import open_sinks
from kcompat.bpf import compile_source
from kcompat.cli_errors import say
from kcompat.cli_sources import Request, answer, quarantine
from kcompat.dialect import check
from kcompat.probe import require_bpf


def rendered(dataset: str, request: Request, nodename: str) -> str:
    """The C of the dataset with this kernel's offsets; where they came from goes to standard error."""
    got = answer(request, pipeline.wanted())
    say(got.origin)
    return pipeline.render(dataset, got.offsets, NetflowOptions(nodename))


def rendered_for(dialect: str, source: str) -> tuple[str, bool]:
    """The C of `rendered` under a comment on how each program fares in an old kernel; and whether the kprobes do.

    Kprobes are the hooks every dialect has: where one of their programs is refused, there is no dataset.
    """
    fits = check(compile_source(source), dialect)
    loads = sum(fit.loads for fit in fits)
    lines = [f"/* BPF of Linux {dialect}: {loads} of {len(fits)} programs load.", " *"]
    for fit in fits:
        what = f"{fit.instructions} instructions, {fit.stack} bytes of stack" if fit.loads else "; ".join(fit.refusals)
        lines.append(f" * {fit.program}: {what}")
    helpers = sorted({helper for fit in fits if fit.loads for helper in fit.helpers})
    lines += [" *", *(f" * {line}" for line in textwrap.wrap(f"helpers: {', '.join(helpers)}", 100)), " */", ""]
    return "\n".join(lines) + source, all(fit.loads for fit in fits if fit.program.startswith(("kprobe", "kretprobe")))


def run(request: Request, nodename: str, *, interval: float, duration: float | None, outputs: tuple[str, ...],
        loopback: bool, exclude: tuple[str, ...], ephemeral_port: int, hostname: str | None) -> int:
    """Collects until the duration, SIGTERM (exit status 0) or Ctrl-C (130)."""
    # Everything a user may have got wrong comes before anything that takes time or needs root.
    options = NetflowOptions(hostname if hostname is not None else nodename, interval, ephemeral_port, loopback,
                             Exclusions.parse(exclude))
    sinks = open_sinks(outputs or ("table",))
    stop = threading.Event()
    try:
        require_bpf()
        with _signals(stop) as caught:
            got = answer(request, pipeline.wanted())
            say(got.origin)
            summary = pipeline.collect(options, got.offsets, sinks, duration_s=duration, stop=stop,
                                       ready=_Announced(f"collecting every {interval:g} s"))
    except Refuted as refuted:
        quarantine(request, got.kernel, refuted.fields, "the collector's own connections came out wrong")
        raise
    finally:
        sinks.close()
    say(_told(summary, sinks.dropped))
    return 130 if signal.SIGINT in caught else 0


class _Announced(threading.Event):
    """Says so when everything is attached: from then on nothing is missed."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def set(self) -> None:
        super().set()
        say(self._words)


def _told(summary: pipeline.Summary, dropped: int) -> str:
    """What was collected and, above all, what was lost."""
    lost = {name: count for name, count in summary.lost.items() if count}
    if overflow := summary.left_out.get("overflow"):
        lost["flows past the limit"] = overflow
    if dropped:
        lost["not delivered"] = dropped
    words = (f"{summary.records} record{'s' * (summary.records != 1)} in {summary.flushes} "
             f"interval{'s' * (summary.flushes != 1)} with {summary.backend} hooks")
    return f"{words}; lost: {', '.join(f'{count} {name}' for name, count in lost.items()) or 'nothing'}"


@contextmanager
def _signals(stop: threading.Event) -> Iterator[list[int]]:
    """The first SIGTERM or SIGINT asks for a last flush; a second Ctrl-C does not wait for it."""
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and caught:
            raise KeyboardInterrupt
        caught.append(number)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)
