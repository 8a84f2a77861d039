"""From what the user asked for to offsets: which sources are asked in which order, and what is remembered."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcompat.cli_memory import Memory
from kcompat.elf import is_elf
from kcompat.engine import Attempt, Resolver, resolve
from kcompat.errors import BadInput, KcompatError, Missing
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, Offsets, State
from kcompat.proved import Proved

if TYPE_CHECKING:
    from guessers.guess import Guess
    from guessers.hooks import Backend
    from guessers.resolver import GuessResolver
    from offset_db.by_release import Name
    from offset_db.db import Database
    from offset_db.resolver import DatabaseResolver

log = logging.getLogger(__name__)

SOURCES = ("auto", "db", "btf", "dwarf", "guess")
_NO_GUESS = {"connections": 0, "samples": 0, "rounds": 0, "compile_s": 0.0, "sampling_s": 0.0, "solving_s": 0.0}
_CALLED = {"db": "the database", "btf": "BTF", "dwarf": "DWARF", "guess": "the guess"}


@dataclass(frozen=True, slots=True)
class Request:
    """Where offsets may come from. `db` None is the default file; `running_only` refuses another kernel's file."""

    source: str = "auto"
    vmlinux: Path | None = None
    db: Path | None = None
    backend: Backend | None = None
    record: bool = True
    running_only: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found. `origin` says in one line where it came from; `guess` is the experiment, if there was one."""

    kernel: Kernel
    offsets: Offsets
    origin: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    guess: Guess | None = None

    @property
    def exit_code(self) -> int:
        return int(any(o.state is State.UNKNOWN for o in self.offsets.values()))

    def only(self, wanted: Field) -> Answer:
        return replace(self, offsets=Offsets([self.offsets[wanted]]))


class _Watched:
    """A source whose failure is kept whole: the engine keeps only its words, the exit code needs its kind."""

    def __init__(self, resolver: Resolver) -> None:
        self.name = resolver.name
        self.error: KcompatError | None = None
        self._resolver = resolver

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterable[Offset]:
        try:
            return list(self._resolver.resolve(kernel, wanted))
        except KcompatError as error:
            self.error = error
            raise


def answer(request: Request, wanted: Sequence[Field], spared: Collection[Field] = ()) -> Answer:
    """Asks the sources. Raises KcompatError when none of them could be used at all.

    For what is `spared` alone there will be no guess, which takes longer than all else.
    """
    started = time.monotonic()
    kernel, foreign = _kernel(request)
    unproved = request.running_only and foreign
    if unproved:
        kernel, foreign = Kernel.running(), False
    guesser = _guesser(request.backend) if request.source in ("auto", "guess") and not foreign else None
    with Memory(request) as memory:
        if guesser:
            guesser.near, guesser.spared = memory.near(kernel), spared
        asked = [_Watched(r) for r in _resolvers(request, foreign, unproved, memory.db, guesser)]
        resolution = resolve(kernel, wanted, asked)
        offsets = resolution.offsets
        if another := next((w.error for w in asked if unproved and isinstance(w.error, BadInput)), None):
            raise another
        if not any(a.answered for a in resolution.attempts) and (failed := [w.error for w in asked if w.error]):
            raise failed[-1]
        if request.source == "db" and not any(o.source == "db" for o in offsets.values()):
            raise KcompatError(f"{memory.path}: holds nothing of kernel {kernel.release or kernel.key} that was asked "
                               "for; `kcompat resolve` or `sudo kcompat guess` fills it")
        _tell_failures(resolution.attempts)
        if guesser and guesser.last:
            # With the modules as the guess found them: nf_conntrack may have been loaded by it.
            kernel = replace(kernel, modules=guesser.last.recording.kernel.modules)
        recorded = request.record and memory.record(kernel, offsets)
    guess = guesser.last if guesser else None
    stats = dict(guess.stats.as_json()) if guess else dict(_NO_GUESS)
    stats["total_s"] = round(time.monotonic() - started, 6)
    return Answer(kernel, offsets, _origin(offsets, foreign, memory.path if recorded else None), stats, guess)


def answer_by_name(db: Path | None, name: Name, wanted: Sequence[Field]) -> Answer:
    """From the database alone, what is held of a kernel of that name. Raises KcompatError when there is none."""
    from kcompat.cli_database import opened
    from offset_db.by_release import ReleaseResolver

    started = time.monotonic()
    with opened(db) as held:
        source = ReleaseResolver(held, name)
    kernel = Kernel(None, name.release, "", name.machine)
    offsets = resolve(kernel, wanted, [source]).offsets
    builds = f"{len(source.builds)} build{'' if len(source.builds) == 1 else 's'}"
    origin = f"{_origin(offsets, True, None)}; remembered of {builds} of {name}, unverified"
    return Answer(kernel, offsets, origin, _NO_GUESS | {"total_s": round(time.monotonic() - started, 6)})


def _kernel(request: Request) -> tuple[Kernel, bool]:
    """The kernel asked about, and whether it is another one than the one running here."""
    running = Kernel.running()
    if request.vmlinux is None:
        if request.source == "dwarf":
            raise Missing("DWARF is read from a file: name a vmlinux with debug information with --vmlinux")
        return running, False
    if not request.vmlinux.exists():
        raise BadInput(request.vmlinux, "there is no such file")
    if request.vmlinux.is_dir():
        raise BadInput(request.vmlinux, "a directory, not a vmlinux or BTF file")
    kernel = Kernel.from_btf(request.vmlinux)
    if kernel.key == running.key:
        return running, False
    # Raw BTF does not say whose it is: used for the running kernel, it is put to the proof.
    if request.running_only and kernel.build_id and not kernel.build_id.startswith("btf-"):
        raise BadInput(request.vmlinux, f"of kernel {kernel.key}, and {running.key} is running")
    if request.running_only and kernel.release not in ("", running.release):
        raise BadInput(request.vmlinux, f"of kernel {kernel.release}, and {running.release} is running")
    return kernel, True


def _guesser(backend: Backend | None) -> GuessResolver:
    from guessers.hooks import BACKENDS
    from guessers.resolver import GuessResolver

    return GuessResolver((backend,) if backend else BACKENDS)


def _resolvers(request: Request, foreign: bool, unproved: bool, db: Database | None,
               guesser: GuessResolver | None) -> Iterable[Resolver]:
    def takes(name: str) -> bool:
        return request.source in ("auto", name)

    def proved(resolver: Resolver) -> Resolver:
        return Proved(resolver, request.vmlinux, _verify) if unproved and request.vmlinux else resolver

    def believed(resolver: Resolver) -> Resolver:
        return memory.unrefuted(proved(resolver)) if memory else proved(resolver)

    memory: DatabaseResolver | None = None
    if takes("db") and db:
        from offset_db.resolver import DatabaseResolver

        memory = DatabaseResolver(db, None if foreign else _verify)
        yield memory
    if takes("btf"):
        from kcompat.btf import RUNNING, BtfResolver

        # A vmlinux of the running kernel adds DWARF in `auto`; its BTF is what the kernel shows anyway.
        own = request.vmlinux and (foreign or request.running_only or request.source == "btf"
                                   or not RUNNING.exists())
        yield believed(BtfResolver(request.vmlinux if own and request.vmlinux else RUNNING))
    # In `auto` a file of raw BTF is asked for that alone: that it is no ELF file is no fault of it.
    if takes("dwarf") and request.vmlinux and (request.source == "dwarf" or is_elf(request.vmlinux)):
        from kcompat.dwarf import DwarfResolver

        yield believed(DwarfResolver(request.vmlinux))
    if guesser:
        yield guesser
    elif request.source == "guess":
        raise KcompatError("only the running kernel can be guessed")


def _verify(kernel: Kernel, offsets: Sequence[Offset]) -> Mapping[Field, bool]:
    from guessers.absence import is_there
    from guessers.verify import verify
    from kcompat.probe import require_bpf

    known = [o for o in offsets if o.state is State.KNOWN]
    # BTF and DWARF have looked at the struct; a guess goes by how the kernel is said to be built.
    wrong = {o.field: False for o in offsets if o.state is State.ABSENT and o.source == "guess" and is_there(o.field)}
    if known:
        require_bpf()
    return {**(verify(kernel, known) if known else {}), **wrong}


def _tell_failures(attempts: Iterable[Attempt]) -> None:
    for attempt in attempts:
        if attempt.reason:
            log.info("%s: %s", attempt.source, attempt.reason)


def _origin(offsets: Offsets, foreign: bool, recorded_in: Path | None) -> str:
    """``46 fields from the database, verified by one event``."""
    counts = Counter(o.source for o in offsets.values() if o.state is not State.UNKNOWN)
    parts: list[str] = []
    for source, count in counts.items():
        noun = "" if parts else " field" if count == 1 else " fields"
        verified = _verified(offsets, count) if source == "db" and not foreign else ""
        parts.append(f"{count}{noun} from {_CALLED.get(source, source)}{verified}")
    if unknown := len(offsets) - sum(counts.values()):
        parts.append(f"{unknown} unknown")
    return "; ".join(parts) + (f"; recorded in {recorded_in}" if recorded_in else "")


def _verified(offsets: Offsets, count: int) -> str:
    """How many of the remembered the event has shown anything of."""
    tested = sum(o.source == "db" and bool(o.evidence.get("tested")) for o in offsets.values())
    return f", {f'{tested} of them ' * (tested < count)}verified by one event"
