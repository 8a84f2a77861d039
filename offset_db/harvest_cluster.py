"""Spreads a harvest over processes or machines with Dask distributed; a few files are read right here."""

from __future__ import annotations

import logging
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from kcompat.errors import Missing
from offset_db.harvest_file import MEMORY_LIMIT, read
from offset_db.harvest_report import SHAPE, Prepared, Report, prepared

# Below this many files, starting workers takes longer than reading them.
_WORTH_A_CLUSTER = 3
_CONNECT_S = 10
# Messages sent ahead for each thread, so that none waits for us; the rest stays here.
_AHEAD = 3
# Files in one message: each message costs us milliseconds that the workers could have had.
_TOGETHER = 8
# But for each thread at least so many messages, so that all end at about the same time.
_MESSAGES = 16

_SETTINGS = {
    # A worker dies of the file it reads, not by chance: that file is not given to a second one.
    "distributed.scheduler.allowed-failures": 0,
    # Only what is being read lies at a worker: whatever else lay there would be blamed for its death too.
    "distributed.scheduler.worker-saturation": 1.0,
    # Its own process's limit comes first; this is for memory that cannot be bounded so.
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.pause": False,
    # What wakes up many times a second to look after itself takes the processor from who reads, and the interpreter:
    # where each worker's Python is, how late each event loop, how full the machine, who could take whose tasks.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "1h",
    "distributed.admin.system-monitor.interval": "1m",
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    # Dask has its workers give every freed block back at once; each file would be read into pages fetched anew, which
    # took a quarter of the time. 32 MiB is the most that glibc lets the second be.
    "distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": str(64 << 20),
                                            "MALLOC_MMAP_THRESHOLD_": str(32 << 20)},
    # Its web pages would be there for every user of this machine.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


def reports(paths: Sequence[Path], jobs: int, scheduler: str | None) -> Iterator[Prepared]:
    """The report of each file, as they come. Raises Missing when that scheduler does not answer."""
    if scheduler is None and len(paths) < _WORTH_A_CLUSTER:
        yield from (prepared(read(path)) for path in paths)
        return
    with _client(min(jobs, len(paths)), scheduler) as client:
        yield from _streamed(client, paths)


def _streamed(client: Any, paths: Sequence[Path]) -> Iterator[Prepared]:
    distributed: Any = import_module("distributed")
    sent = {}
    threads = max(sum(client.nthreads().values()), 1)
    size = max(1, min(_TOGETHER, len(paths) // (_MESSAGES * threads)))
    waiting = (paths[at:at + size] for at in range(0, len(paths), size))

    def send(batch: Sequence[Path]) -> Any:
        # Not pure: a file may have changed since a harvest of the same cluster read it.
        future = client.submit(_read_all, read, batch, pure=False)
        sent[future.key] = batch
        return future

    first = [send(batch) for batch in islice(waiting, _AHEAD * threads)]
    results = distributed.as_completed(first, with_results=True, raise_errors=False)
    # Held here they would be held by the workers too, with all that was found.
    del first
    for future, result in results:
        batch = sent.pop(future.key)
        if (following := next(waiting, None)) is not None:
            results.add(send(following))
        if isinstance(result, bytes):
            yield from map(_ours, pickle.loads(result))
        elif len(batch) > 1:
            # One of them is to blame: which, shows when each is read alone.
            for path in batch:
                results.add(send((path,)))
        else:
            yield _report(result, batch[0])


def _read_all(reader: Callable[[Path], Report], paths: Sequence[Path]) -> bytes:
    """Runs at a worker. Bytes, because Dask looks into whatever else it carries."""
    return pickle.dumps([prepared(reader(path)) for path in paths])


def _ours(found: Prepared) -> Prepared:
    if found.shape != SHAPE:
        return Prepared(found.path, faults=("the worker that read it runs another version of kcompat",))
    return found


def _report(result: object, path: Path) -> Prepared:
    """What is no bytes of ours is a bug, or a worker that is not like us; either way the rest goes on."""
    error = result[1] if isinstance(result, tuple) else result
    if isinstance(error, import_module("distributed").KilledWorker):
        return Prepared(path, faults=("the worker that read it died: out of memory, or killed",))
    return Prepared(path, faults=(f"the worker failed: {type(error).__name__}: {error}",))


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
            raise Missing(f"no Dask scheduler answers at {scheduler}: {error}") from error
        with client:
            if not client.nthreads():
                raise Missing(f"the Dask scheduler at {scheduler} has no workers")
            yield client
        return
    # Workers keep files of their own, which a worker that is killed leaves behind.
    with (
        tempfile.TemporaryDirectory(prefix="kcompat-harvest-") as scratch,
        dask.config.set(_SETTINGS | {"temporary-directory": scratch}),
        # TLS with keys of this run: whoever may connect may run code as us.
        distributed.LocalCluster(n_workers=jobs, threads_per_worker=1, processes=True, memory_limit=MEMORY_LIMIT,
                                 dashboard_address="127.0.0.1:0", local_directory=scratch, silence_logs=60,
                                 security=True) as cluster,
        distributed.Client(cluster, direct_to_workers=True) as client,
    ):
        yield client


def _hush() -> None:
    """How a cluster's parts come, go and lose each other is not for our user; what matters of it is in the reports."""
    for name in ("distributed", "tornado", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
