"""Spreads the kernels of a run over workers with Dask distributed: processes of this machine, or other machines."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ci.fetch import cache_dir
from ci.matrix import Kind, Limits, Yield, check_kernel, unknown
from ci.verdict import last_lines

# How often a kernel may lose its worker before that is its own fault.
ATTEMPTS = 2
_CONNECT_S = 10.0
# Workers come and go; when none has been there for so long, none will come.
_WORKERLESS_S = 60.0
_ROUND_S = 2.0
_REPORT_EVERY_S = 1.0
_SETTINGS = {
    "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
    # Only what runs lies at a worker: whatever else lay there would be blamed for its death too.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.profile.enabled": False,
    # A terminal's Ctrl-C reaches workers as well; ending them is for us, in order.
    "distributed.worker.preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
    # Its web pages would be there for every user of this machine.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}

Told = Callable[[str, str, str, str], None]
"""What is told while a kernel runs: its name, the worker, the phase and the last console line."""


class SchedulerError(Exception):
    """The kernels cannot be spread; the message says why."""


class Abandoned(Exception):
    """Whoever asked for this kernel is gone, or asks for it no more."""


def check_all(
    entries: Sequence[Kind], limits: Limits, logs: Path | None, jobs: int, scheduler: str | None, told: Told
) -> Iterator[Yield]:
    """What each kernel gave, as they end. Raises SchedulerError when no scheduler answers at that address."""
    with _client(min(jobs, len(entries)), scheduler) as client:
        # A run of its own: a scheduler that stays remembers earlier ones.
        run = f"kcompat-matrix-{time.time_ns()}"
        client.subscribe_topic(f"{run}-progress", lambda event: told(*event[1]))
        waiting = {}
        for entry in entries:
            # Not pure: to ask again is to boot again.
            future = client.submit(_checked, entry, limits, logs, run, key=f"{entry.name}-{run}", pure=False)
            waiting[future] = entry
        try:
            yield from _gathered(client, waiting)
        finally:
            client.cancel(list(waiting), force=True)


def _gathered(client: Any, waiting: dict[Any, Kind]) -> Iterator[Yield]:
    distributed: Any = import_module("distributed")
    alive = time.monotonic()
    while waiting:
        try:
            done = distributed.wait(list(waiting), timeout=_ROUND_S, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            done = ()
        for future in done:
            yield _result(future, waiting.pop(future))
        if client.status != "running" or not client.nthreads():
            if time.monotonic() - alive > _WORKERLESS_S:
                for entry in waiting.values():
                    yield Yield(unknown(entry, "fetch", f"no worker was left for {_WORKERLESS_S:.0f} s"))
                return
        else:
            alive = time.monotonic()


def _result(future: Any, entry: Kind) -> Yield:
    """What is no result is told as it is; the other kernels go on."""
    distributed: Any = import_module("distributed")
    try:
        result: Yield = future.result(timeout=_CONNECT_S)
        return result
    except distributed.KilledWorker as error:
        return _deadly(entry, error.last_worker.address)
    except Exception as error:
        # A worker that is not like us, a scheduler that ended: whatever it is, this kernel was not judged.
        return Yield(unknown(entry, "fetch", f"the worker failed: {type(error).__name__}: {error}"))


def _checked(entry: Kind, limits: Limits, logs: Path | None, run: str) -> Yield:
    """Runs at a worker."""
    distributed: Any = import_module("distributed")
    worker = distributed.get_worker()
    attempt = _begun(worker, f"{run}-{entry.name}")
    if attempt > ATTEMPTS:
        # A scheduler that is not ours may allow more.
        return _deadly(entry, worker.address)
    log = (logs or cache_dir() / "logs").absolute() / f"{entry.name}.log"
    given = check_kernel(entry, limits, log, _Reporter(worker, entry.name, f"{run}-progress"))
    return replace(given, result=replace(given.result, worker=worker.address, attempts=attempt))


def _deadly(entry: Kind, address: str) -> Yield:
    reason = f"the worker died that it ran on, {ATTEMPTS} times; it is not tried again"
    return Yield(replace(unknown(entry, "fetch", reason), worker=address, attempts=ATTEMPTS))


def _begun(worker: Any, topic: str) -> int:
    """How often this kernel has been begun, this time included; the scheduler remembers, for workers die."""
    distributed: Any = import_module("distributed")
    events = distributed.get_client().get_events(topic)
    worker.log_event(topic, worker.address)
    return len(events) + 1


class _Reporter:
    """Passes progress on, now and then, and ends what nobody waits for any more."""

    def __init__(self, worker: Any, name: str, topic: str) -> None:
        self._worker, self._name, self._topic = worker, name, topic
        self._key = worker.get_current_task()
        self._line, self._said, self._phase = "", 0.0, ""

    def __call__(self, phase: str, text: str) -> None:
        task = self._worker.state.tasks.get(self._key)
        if task is None or task.state != "executing":
            raise Abandoned(f"{self._name} was cancelled")
        self._line = next(iter(last_lines(text, 1)), self._line)
        now = time.monotonic()
        if phase != self._phase or now - self._said >= _REPORT_EVERY_S:
            self._phase, self._said = phase, now
            self._worker.log_event(self._topic, [self._name, self._worker.address, phase, self._line])


@contextmanager
def _client(jobs: int, scheduler: str | None) -> Iterator[Any]:
    dask: Any = import_module("dask")
    # It has types, but not on what is called here.
    distributed: Any = import_module("distributed")
    _hush()
    if scheduler is not None:
        try:
            client = distributed.Client(scheduler, timeout=_CONNECT_S)
        except (OSError, ValueError) as error:
            raise SchedulerError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        with client:
            if not client.nthreads():
                raise SchedulerError(f"the Dask scheduler at {scheduler} has no workers")
            yield client
        return
    # Workers keep files of their own, which a worker that is killed leaves behind.
    with (
        tempfile.TemporaryDirectory(prefix="kcompat-matrix-") as scratch,
        dask.config.set(_SETTINGS | {"temporary-directory": scratch}),
        # TLS with keys of this run: whoever may connect may run code as us. A VM's memory is not its worker's.
        distributed.LocalCluster(n_workers=jobs, threads_per_worker=1, processes=True, memory_limit=None,
                                 dashboard_address="127.0.0.1:0", local_directory=scratch, silence_logs=60,
                                 security=True) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _hush() -> None:
    """How a cluster's parts come, go and lose each other is not for our user; what matters of it is in the results."""
    for name in ("distributed", "tornado", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
