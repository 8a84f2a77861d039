"""`kcompat compile`: what guess and collect load, compiled before it is needed and for kernels that run elsewhere."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from collector import pipeline
from collector.config import Options
from guessers import memory
from kcompat.bpf import cache_dir, cached_path, compile_cached
from kcompat.cli_output import to_json
from kcompat.errors import Missing, UnknownField
from kcompat.kernel import Kernel
from kcompat.offsets import Offsets
from kcompat.printable import printable
from kcompat.probe import require_bpf
from offset_db.db import Database
from offset_db.files import default_path
from offset_db.resolver import DatabaseResolver


@dataclass(slots=True)
class Program:
    """One source, compiled or refused, and the kernels that load it; none named is every kernel."""

    name: str
    kernels: list[str]
    path: Path | None = None
    cached: bool = False
    seconds: float = 0.0
    reason: str | None = None


def compile_all(db_path: Path | None, machine: str | None, options: Options) -> list[Program]:
    """The guess's program, and each dataset's for every kernel of the database that is of this machine type.

    What reads no field is one for all kernels, as the guess's is; of the rest, kernels whose fields lie at the same
    places share a program. The sources are those of `kcompat collect` with these options: another --ephemeral-port is
    another program.
    """
    require_bpf()
    machine = machine or platform.machine()
    programs = {memory.source(machine): Program("guess", [])}
    for dataset in pipeline.programmed():
        if not pipeline.wanted((dataset,)):
            programs[pipeline.render(dataset, Offsets(), options)] = Program(dataset, [])
    refused = []
    for kernel, offsets in _remembered(db_path, machine):
        for dataset in filter(lambda name: pipeline.wanted((name,)), pipeline.programmed()):
            try:
                source = pipeline.render(dataset, offsets, options)
            except UnknownField as error:
                refused.append(Program(dataset, [kernel.release or kernel.key], reason=str(error)))
                continue
            programs.setdefault(source, Program(dataset, [])).kernels.append(kernel.release or kernel.key)
    for source, program in programs.items():
        started = time.monotonic()
        _, program.cached = compile_cached(source, machine=machine)
        program.path, program.seconds = cached_path(source, machine), time.monotonic() - started
        # Elsewhere the cache is only a shortcut; here the file is what was asked for.
        if not program.path.exists():
            raise Missing(f"{program.path}: the object could not be written there")
    return [*programs.values(), *refused]


def _remembered(db_path: Path | None, machine: str) -> Iterator[tuple[Kernel, Offsets]]:
    path = db_path or default_path()
    if db_path is None and not path.exists():
        return
    with Database.open(path, read_only=True) as db:
        for kernel in db.kernels():
            if kernel.machine == machine:
                yield kernel, Offsets(DatabaseResolver(db, None).resolve(kernel, pipeline.wanted()))


def programs_json(programs: list[Program]) -> str:
    told = [{"program": p.name, "kernels": p.kernels, "path": str(p.path) if p.path else None, "cached": p.cached,
             "seconds": round(p.seconds, 3), "reason": p.reason} for p in programs]
    compile_s = sum(p.seconds for p in programs if not p.cached)
    return to_json({"programs": told, "stats": {"compile_s": round(compile_s, 3)}})


def programs_text(programs: list[Program]) -> str:
    lines = []
    for program in programs:
        whose = ", ".join(program.kernels) or "every kernel"
        how = program.reason or ("was there" if program.cached else f"compiled in {program.seconds:.1f} s")
        lines.append(f"{program.name} for {printable(whose)}: {printable(how)}\n")
    return "".join(lines) + f"objects are in {cache_dir()}\n"
