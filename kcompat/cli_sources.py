"""From what the user asked for to offsets: which sources are asked in which order, and what is remembered."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcompat.elf import is_elf
from kcompat.engine import Attempt, Resolver, resolve
from kcompat.errors import BadInput, KcompatError, Missing
from kcompat.fields import Field
from kcompat.kernel import Kernel, is_module
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
    with _Memory(request) as memory:
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


def quarantine(request: Request, kernel: Kernel, fields: Collection[Field], reason: str) -> None:
    """Keeps what is remembered of these fields from being answered again; it stays to be looked at, with the reason."""
    from offset_db.db import Database
    from offset_db.files import default_path

    try:
        with Database.open(request.db or default_path()) as db:
            held = [(s.offset.field, s.offset.source) for s in db.offsets(kernel) if s.quarantined_at is None]
            for field, source in held:
                if field in fields:
                    log.warning("%s from %s is quarantined: %s", field, source, reason)
                    db.quarantine(kernel, field, source, reason)
    except KcompatError as error:
        log.warning("not remembered: %s", error)


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


class _Memory:
    """The database for one command; without one there is nothing to ask and nothing is remembered, which is said."""

    def __init__(self, request: Request) -> None:
        from offset_db.files import default_path

        self.path = request.db or default_path()
        self.db: Database | None = None
        # What the database itself says is not recorded there again.
        self._records = request.record and request.source != "db"
        if request.source in ("auto", "db"):
            self._open(needed=request.source == "db")

    def _open(self, *, needed: bool) -> None:
        from kcompat.cli_database import is_there, opened
        from offset_db.db import Database

        try:
            if self._records:
                self.db = Database.open(self.path)
            elif needed or is_there(self.path):
                self.db = opened(self.path)
        except KcompatError as error:
            if needed:
                raise
            log.warning("nothing is remembered: %s", error)

    def near(self, kernel: Kernel) -> Mapping[Field, tuple[str, int]]:
        """What the nearest kernels it holds have, where there is a database to ask."""
        from offset_db.neighbours import nearest

        if self.db is None and self._records and self.path.exists():
            self._open(needed=False)
        try:
            return nearest(self.db, kernel) if self.db else {}
        except KcompatError as error:
            log.warning("no neighbours are known: %s", error)
            return {}

    def record(self, kernel: Kernel, offsets: Offsets) -> bool:
        """Whether something was learnt and written down."""
        learnt = [o for o in offsets.values() if o.source not in ("db", "none") and not _is_of_no_build(kernel, o)]
        if not learnt:
            return False
        if self.db is None:
            self._open(needed=False)
        if self.db is None:
            return False
        from offset_db.trust import disagreements

        try:
            self.db.record(kernel, learnt)
            clashes = disagreements(kernel, self.db.offsets(kernel))
        except KcompatError as error:
            log.warning("not remembered: %s", error)
            return False
        if clashes:
            log.warning("sources disagree on %s: see `kcompat db disagreements`",
                        ", ".join(d.field.name for d in clashes))
        return True

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *_: object) -> None:
        if self.db:
            self.db.close()


def _is_of_no_build(kernel: Kernel, offset: Offset) -> bool:
    """A guess of what a module owns that does not show its build: remembered, it would hold for every build of it."""
    owner = offset.field.module
    return offset.source == "guess" and owner is not None and owner not in kernel.modules and is_module(owner)


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
