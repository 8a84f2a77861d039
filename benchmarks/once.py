"""One measurement in a fresh interpreter, as a user's command would meet it; prints one JSON object.

``python -m benchmarks.once guess-cold``: benchmarks/guess.py and resolve.py run this and add up.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _guess(*, use_cache: bool) -> dict[str, Any]:
    clock = time.perf_counter()
    from guessers.guess import guess

    imports_s = time.perf_counter() - clock
    clock, cpu = time.perf_counter(), time.process_time()
    found = guess(use_cache=use_cache)
    seconds, cpu_s = time.perf_counter() - clock, time.process_time() - cpu
    from kcompat.offsets import State

    places = {field.name: offset.offset for field, offset in found.offsets.items() if offset.state is State.KNOWN}
    return {"imports_s": imports_s, "seconds": seconds, "cpu_s": cpu_s, **found.stats.as_json(),
            "fields": len(found.offsets), "places": places}


def _hit(path: str) -> dict[str, Any]:
    clock = time.perf_counter()
    import guessers.verify
    from kcompat.fields import CATALOGUE
    from kcompat.kernel import Kernel
    from kcompat.offsets import State
    from kcompat.probe import require_bpf
    from offset_db.db import Database
    from offset_db.resolver import DatabaseResolver

    verify_s = 0.0

    def verify(kernel: Kernel, offsets: Any) -> Any:
        nonlocal verify_s
        started = time.perf_counter()
        require_bpf()
        refuted = guessers.verify.verify(kernel, offsets)
        verify_s = time.perf_counter() - started
        return refuted

    imports_s = time.perf_counter() - clock
    clock, cpu = time.perf_counter(), time.process_time()
    with Database.open(Path(path)) as db:
        answers = list(DatabaseResolver(db, verify).resolve(Kernel.running(), CATALOGUE))
    seconds, cpu_s = time.perf_counter() - clock, time.process_time() - cpu
    return {"imports_s": imports_s, "seconds": seconds, "cpu_s": cpu_s, "verify_s": verify_s,
            "fields": sum(a.state is not State.UNKNOWN for a in answers)}


def _btf() -> dict[str, Any]:
    clock = time.perf_counter()
    from kcompat.btf import BtfResolver
    from kcompat.fields import CATALOGUE
    from kcompat.kernel import Kernel
    from kcompat.offsets import State

    imports_s = time.perf_counter() - clock
    clock, cpu = time.perf_counter(), time.process_time()
    answers = list(BtfResolver().resolve(Kernel.running(), CATALOGUE))
    seconds, cpu_s = time.perf_counter() - clock, time.process_time() - cpu
    return {"imports_s": imports_s, "seconds": seconds, "cpu_s": cpu_s,
            "fields": sum(a.state is not State.UNKNOWN for a in answers)}


def _compile() -> dict[str, Any]:
    """Both programs through bcc, its import included: who finds them in the cache needs neither."""
    from collector.config import Options
    from collector.datasets import netflow
    from guessers import memory
    from kcompat.bpf import compile_source
    from kcompat.fields import CATALOGUE
    from kcompat.offsets import Offset, Offsets

    # Where a field lies makes no difference to the compiler.
    offsets = Offsets([Offset.known(f, 8 * i, "benchmark", width=f.width) for i, f in enumerate(CATALOGUE)])
    sources = memory.source(), netflow.render(offsets, Options("any"))
    clock = time.perf_counter()
    for source in sources:
        compile_source(source)
    return {"guest_compile_s": round(time.perf_counter() - clock, 3)}


def _flush(flows: str, who: str, pods: str = "") -> dict[str, Any]:
    from benchmarks import flush

    return {"ours": flush.measured, "influxdb-client": flush.rival}[who](int(flows), bool(pods))


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "guess-cold": lambda: _guess(use_cache=False),
    "guess-cached": lambda: _guess(use_cache=True),
    "hit": _hit,
    "btf": _btf,
    "compile": _compile,
    "flush": _flush,
}


def main(arguments: list[str]) -> None:
    from kcompat.errors import KcompatError

    try:
        print(json.dumps(MEASUREMENTS[arguments[0]](*arguments[1:])))
    except KcompatError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
