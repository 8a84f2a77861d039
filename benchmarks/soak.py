"""Whether a collector can be left alone: mixed load, failing sinks, SIGHUPs, upgrades; memory flat, all totals exact.

``sudo python -m benchmarks.soak [--duration 2h]``; ``python -m benchmarks soak`` is the form of ten minutes.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks import measure, report
from benchmarks.measure import Line, Repetitions, Result, Target, of, timed
from benchmarks.soak_books import ADDRESSES, Books, Sample, Written, by_minute, differences, slope_mb_per_hour
from benchmarks.soak_trouble import FailingSink, Worker, brief_namespace, replace, typed_in
from benchmarks.soak_watch import Collector, until
from collector.config import seconds
from kcompat.errors import KcompatError, Missing
from kcompat.probe import require_bpf

TITLE = "A collector left alone under mixed load, with everything around it failing"
SHORT_S, LONG_S = 600.0, 7200.0
_NAMESPACES_AN_HOUR = 500
_PER_SECOND, _TLS_PER_SECOND = 25.0, 4.0
_WARM_UP, _QUIET_S, _SAMPLE_S, _DNS_TIMEOUT_S = 0.3, 20.0, 2.0, 15.0
_CLIENT, _SERVER = f"{ADDRESSES}0.1", f"{ADDRESSES}0.2"
_SLOPE_MB_PER_HOUR = 1.0


@dataclass(slots=True)
class Soaked:
    """What one soak saw."""

    samples: list[Sample] = field(default_factory=list)
    quiet: list[list[str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    exit_status: int = -1
    end_s: float = 0.0


class Trouble:
    """A thread that does something every so often, counted from 0, unless it is told to pause."""

    def __init__(self, name: str, period_s: float, work: Callable[[int], None]) -> None:
        self.name, self.times, self.fault = name, 0, ""
        self._period_s, self._work = period_s, work
        self._stop, self._idle, self._runs = threading.Event(), threading.Lock(), threading.Event()
        self._runs.set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        # A lock alone is not handed over: who lets go of it and wants it at once has it again.
        self._runs.clear()
        try:
            with self._idle:
                yield
        finally:
            self._runs.set()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._period_s, time.monotonic())
            self._runs.wait()
            with self._idle:
                try:
                    self._work(self.times)
                except (KcompatError, OSError) as error:
                    self.fault = f"{self.name}, the {self.times + 1}th time: {error}"
            self.times += 1


class Tls:
    """The server and the client of the present libssl."""

    def __init__(self, home: Path, collector: Collector, books: Books) -> None:
        self._home, self._collector, self._books = home, collector, books
        self._original = _library()
        self._workers: list[Worker] = []
        timed(("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
               "-days", "2", "-subj", "/CN=soak", "-keyout", str(home / "key"), "-out", str(home / "certificate")))
        with (home / "pem").open("wb") as both:
            both.write((home / "key").read_bytes() + (home / "certificate").read_bytes())

    def upgrade(self, number: int) -> None:
        self.end()
        libraries = self._home / "lib"
        replace(self._original, libraries / self._original.name)
        for arguments in ((("soak-b"), "tls-server", _SERVER, str(self._home / "pem")),
                          (("soak-a"), "tls-client", _SERVER, str(_TLS_PER_SECOND))):
            self._workers.append(Worker(*arguments, libraries=libraries))
        self._collector.wait_for_word("TLS is read in", *(one.pid for one in self._workers))
        for one in self._workers:
            one.begin()

    def end(self) -> None:
        while self._workers:
            self._workers.pop().end(self._books)


def _library() -> Path:
    """The libssl that this Python uses. Raises Missing."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/libssl.so" in line:
            return Path(line.split()[-1])
    raise Missing("this Python has no shared libssl")


def soak(duration_s: float, home: Path) -> Soaked:
    """One soak of that length. Raises KcompatError where it cannot be had."""
    require_bpf()
    for tool in ("ip", "openssl", "bash"):
        if not shutil.which(tool):
            raise Missing(f"{tool} is not installed")
    done, books, written = Soaked(), Books(), Written()
    with ExitStack() as stack:
        numbers = stack.enter_context(_wire())
        failing = FailingSink()
        stack.callback(failing.close)
        hole_port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        collector = Collector(home, failing.port, hole_port)
        stack.callback(collector.kill)
        workers = [Worker("soak-b", "server", _SERVER), Worker("soak-a", "client", _SERVER, str(_PER_SECOND))]
        for worker in workers:
            stack.callback(worker.kill)
            worker.begin()
        tls = Tls(home, collector, books)
        bash = home / "bin" / "bash"

        def another_bash(number: int) -> None:
            replace(Path("/bin/bash").resolve(), bash)
            typed_in(bash, books, lambda pid: collector.wait_for_word("bash lines are read in", pid))

        troubles = [Trouble("namespaces made and deleted", 3600 / _NAMESPACES_AN_HOUR,
                            lambda number: brief_namespace(books, number)),
                    Trouble("SIGHUPs", duration_s / 60, lambda number: collector.hang_up()),
                    Trouble("changes of the failing sink", 10, failing.turn),
                    Trouble("upgrades of bash", duration_s / 24, another_bash),
                    Trouble("upgrades of libssl", duration_s / 16, tls.upgrade)]
        _sample(collector, done, _WARM_UP * duration_s)
        _be_quiet(troubles, collector, done)
        _sample(collector, done, duration_s)
        _be_quiet(troubles, collector, done)
        for trouble in troubles:
            trouble.end()
            done.faults += [trouble.fault] if trouble.fault else []
        done.times = {trouble.name: trouble.times for trouble in troubles}
        tls.end()
        for worker in reversed(workers):
            worker.end(books)
        failing.be("takes")
        time.sleep(_DNS_TIMEOUT_S)
        flushes = collector.status()["flushes"]
        until(lambda: collector.status()["flushes"] > flushes + 1 and not _sinks(collector)[2]["waiting"],
              "the failing sink to have taken all")
        begun = time.monotonic()
        done.status = collector.status()
        done.exit_status = collector.end()
        done.end_s = time.monotonic() - begun
        written.read(collector.records.read_text().splitlines())
        done.faults += [f"our own: {line}" for line in collector.said().splitlines()
                        if any(f"network namespace {number} " in line for number in numbers)]
    totals = books.totals()
    done.faults += differences(totals, written.totals) + _of_sinks(done, written, failing)
    hole_url = f"http://127.0.0.1:{hole_port}/write"
    if (told := collector.told_of(hole_url)) != written.records:
        done.faults.append(f"the black hole: {told} points are accounted for, of {written.records}")
    done.times |= {"totals compared": len(totals), "things counted": sum(totals.values()),
                   "points": written.records, "requests the failing sink did not take": failing.failures,
                   "points it took twice": failing.again}
    return done


def _sinks(collector: Collector) -> list[dict[str, Any]]:
    sinks: list[dict[str, Any]] = collector.status()["sinks"]
    return sinks


@contextmanager
def _wire() -> Iterator[list[int]]:
    """The numbers of the namespaces soak-a and soak-b, with a wire between them."""
    def ip(*arguments: str) -> None:
        timed(("ip", *arguments))

    ends = (("soak-a", _CLIENT), ("soak-b", _SERVER))
    with ExitStack() as stack:
        for name, _ in ends:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip("-n", "soak-a", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", "soak-b")
        for name, address in ends:
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            for link in ("wire", "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield [Path("/run/netns", name).stat().st_ino for name, _ in ends]


def _sample(collector: Collector, done: Soaked, until_s: float) -> None:
    while (sample := collector.sample()).at_s < until_s:
        done.samples.append(sample)
        time.sleep(_SAMPLE_S)


def _be_quiet(troubles: list[Trouble], collector: Collector, done: Soaked) -> None:
    """The load goes on, nothing else happens: what it holds open now it may hold open the next time, and no more."""
    with ExitStack() as stack:
        for trouble in troubles:
            stack.enter_context(trouble.paused())
        time.sleep(_QUIET_S)
        done.quiet.append(min((collector.descriptors() for _ in range(10)), key=len))


def _of_sinks(done: Soaked, written: Written, failing: FailingSink) -> list[str]:
    """Each sink's numbers must add up, and the one that failed have every point."""
    faults = []
    for sink in done.status["sinks"][:3]:
        if (told := sink["written"] + sink["dropped"] + sink["waiting"]) < (made := done.status["sinks"][0]["written"]):
            faults.append(f"{sink['name']}: {told} points are accounted for, of {made}")
    if missing := len(written.lines - failing.taken):
        faults.append(f"the failing sink never got {missing} of {len(written.lines)} points")
    if more := len(failing.taken - written.lines):
        faults.append(f"the failing sink got {more} points that are in no file")
    if done.exit_status:
        faults.append(f"the collector ended with {done.exit_status}")
    return faults


def _outside_spools(descriptors: list[str]) -> list[str]:
    """A spool is bounded in bytes, and has a file open for each sixteenth of them: how many varies with what waits."""
    return [path for path in descriptors if not path.endswith(".chunks")]


def lost(status: dict[str, Any]) -> dict[str, int]:
    return {f"{one['dataset']}: {what}": count for one in status["datasets"] for what, count in one["lost"].items()
            if count}


def run(repetitions: Repetitions) -> Result:
    """The short form, once: what it counts is no matter of chance."""
    return soaked(SHORT_S)


def soaked(duration_s: float, keep: Path | None = None) -> Result:
    """With `keep` what the collector wrote and said stays there."""
    before = measure.load()
    with tempfile.TemporaryDirectory(prefix="kcompat-soak-") as fleeting:
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
        done = soak(duration_s, keep or Path(fleeting))
    return Result("soak", TITLE, tuple(_lines(done, duration_s)), tuple(done.faults) + tuple(_remarks(done)),
                  (before, measure.load()), 1, 0)


def _lines(done: Soaked, duration_s: float) -> Iterator[Line]:
    settled = [sample for sample in done.samples if sample.at_s > _WARM_UP * duration_s + _QUIET_S]
    yield of("resident memory, slope after warm-up", [slope_mb_per_hour(settled)], unit="MB/h",
             target=Target(_SLOPE_MB_PER_HOUR), note=f"over {(duration_s * (1 - _WARM_UP)) / 60:.0f} minutes; "
             f"{settled[0].resident_mb:.1f} MB then, {settled[-1].resident_mb:.1f} at the end, "
             f"{settled[-1].anonymous_mb:.1f} its own")
    early, late = (_outside_spools(one) for one in done.quiet)
    yield of("file descriptors more than after warm-up", [len(late) - len(early)], unit="", target=Target(1),
             note=f"{len(early)} then, {len(late)} at the end, while nothing but the load went on, spools left out; "
                  f"most at a time {max(sample.descriptors for sample in settled)}")
    yield of("totals and sinks that are not as they should be", [len(done.faults)], unit="", target=Target(1),
             note=", ".join(f"{count} {what}" for what, count in done.times.items()))
    counters = lost(done.status)
    inexact = {fault.split()[0] for fault in done.faults}
    yield of("lost counters that are the load's", [sum(what.split(":")[0] in inexact for what in counters)], unit="",
             target=Target(1), note=", ".join(f"{count} {what}" for what, count in counters.items())
             + (" lost by others on this machine: of the load everything was counted" if counters else "none"))
    yield of("from SIGTERM to the end", [done.end_s], target=Target(5000))


def _remarks(done: Soaked) -> Iterator[str]:
    for sink in done.status["sinks"]:
        yield f"{sink['name']}: {sink['written']} written, {sink['dropped']} dropped, {sink['waiting']} waiting"
    for what in ("resident_mb", "anonymous_mb"):
        told = by_minute(done.samples, what)
        every = max(1, len(told) // 12)
        yield f"{what} by minutes: " + ", ".join(f"{at}: {value:.1f}" for at, value in told[::every])
    early, late = (_outside_spools(one) for one in done.quiet)
    if more := [what for what in dict.fromkeys(late) if late.count(what) > early.count(what)]:
        yield "descriptors that are more: " + ", ".join(f"{late.count(w) - early.count(w)} {w}" for w in more)


@click.command()
@click.option("--duration", default="2h", show_default=True, help="Seconds, or text like 10m.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="An empty directory for what the collector writes and says. Default: one that is deleted.")
def main(duration: str, keep: Path | None) -> None:
    """Soak `kcompat collect`, as root; exit status 1 when it fell short of a target.

    \b
    Examples:
      sudo .venv/bin/python -m benchmarks.soak
      sudo .venv/bin/python -m benchmarks.soak --duration 10m
    """
    # So that what was begun is ended, also where Ctrl-C is not heard.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        result = soaked(float(seconds(duration)), keep)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    except KcompatError as error:
        click.echo(f"soak: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(report.text([result]), nl=False)
    sys.exit(any(line.verdict == "short of target" for line in result.lines))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.soak")
