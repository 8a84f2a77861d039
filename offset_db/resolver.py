"""The memory as a source of offsets: what it holds is put to the proof by one event before it is trusted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from kcompat.engine import Resolver
from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State, Verdict
from kcompat.proved import BORNE_OUT, Verify
from offset_db import rows
from offset_db.by_release import Name, ReleaseResolver
from offset_db.db import Database
from offset_db.refuted import Unrefuted
from offset_db.rows import Stored
from offset_db.trust import contradict, fits_modules, module_build_id, told_apart, told_elsewhere, usable

log = logging.getLogger(__name__)


class DatabaseResolver:
    """Answers from the memory. With `verify` None nothing is verified: only for a kernel that is not running."""

    def __init__(self, db: Database, verify: Verify | None) -> None:
        self.name = "db"
        self._db = db
        self._verify = verify
        self._refuted: list[Offset] = []

    def unrefuted(self, resolver: Resolver) -> Unrefuted:
        """A source to be asked after this one."""
        return Unrefuted(resolver, self._refuted)

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterator[Offset]:
        own = self._db.offsets(kernel)
        self._refuted += [s.offset for s in own if s.quarantined_at and s.offset.state is not State.UNKNOWN
                          and fits_modules(s, kernel)]
        held = usable((*own, *self._of_modules(kernel, wanted)), kernel)
        agreed = {}
        for field in wanted:
            answers = held.get(field, [])
            offsets = [s.offset for s in answers]
            if offsets and contradict(offsets):
                yield self._disputed(offsets)
            elif answers:
                agreed[field] = answers
        doubted = {s.offset.source: s.offset.field for s in own if s.quarantined_at}
        elsewhere = told_elsewhere(own, kernel)
        for answer in self._proved(kernel, agreed, doubted if self._verify else {}):
            # Only the event decides between what a source said here and what it said elsewhere.
            offsets = [agreed[answer.field][0].offset, *elsewhere.get(answer.field, ())]
            if contradict(offsets) and not answer.evidence.get("tested"):
                yield self._disputed(offsets)
            else:
                yield answer
        if self._verify:
            refuted = {s.offset.field for s in own if s.quarantined_at}
            missing = [f for f in wanted if f not in held and f not in refuted]
            yield from self._borne_out(kernel, missing, self._verify) if missing else ()

    def _disputed(self, offsets: Sequence[Offset]) -> Offset:
        return Offset.unknown(offsets[0].field, self.name, f"sources disagree: {told_apart(offsets)}", disputed=True)

    def _of_modules(self, kernel: Kernel, wanted: Sequence[Field]) -> list[Stored]:
        """What is held of the very modules that are loaded: their debug files do not tell the build of the kernel."""
        owned = {f for f in wanted if module_build_id(kernel, f)}
        return [s for other in (self._db.show(kernel.release) if owned else ()) if other.kernel.key != kernel.key
                for s in other.stored
                if s.offset.field in owned and s.module_build_id == module_build_id(kernel, s.offset.field)]

    def _borne_out(self, kernel: Kernel, wanted: Sequence[Field], verify: Verify) -> Iterator[Offset]:
        """What is held of other builds of that release, by whoever: only what an event on this one has shown."""
        try:
            named = ReleaseResolver(self._db, Name(kernel.release, kernel.machine), besides=kernel)
            told = [o for o in named.resolve(kernel, wanted) if o.state is State.KNOWN]
            held = verify(kernel, told) if told else {}
        except KcompatError as error:
            log.debug("nothing of other builds of %s: %s", kernel.release, error)
            return
        for offset in told:
            if held.get(offset.field):
                yield replace(offset, source=self.name, verdict=Verdict.OK, confidence=BORNE_OUT,
                              evidence={**offset.evidence, "tested": True})

    def _proved(self, kernel: Kernel, agreed: dict[Field, list[Stored]], doubted: dict[str, Field]) -> Iterator[Offset]:
        """Who is wrong in one field (`doubted`, by source) is believed in no other that nothing has shown."""
        held: Mapping[Field, bool] = {}
        if self._verify and agreed:
            try:
                held = self._verify(kernel, [answers[0].offset for answers in agreed.values()])
            except KcompatError as error:
                # None of it then, absent ones included: a memory that cannot be checked is not trusted.
                for field in agreed:
                    yield Offset.unknown(field, self.name, f"remembered, but it cannot be verified: {error}")
                return
            self._remember(kernel, agreed, held)
        # It may be of another kernel.
        doubted |= {s.offset.source: field for field, true in held.items() if not true for s in agreed[field]}
        for field, answers in agreed.items():
            sound = answers if field in held else [s for s in answers if s.offset.source not in doubted]
            if not sound:
                source = answers[0].offset.source
                yield Offset.unknown(field, self.name, f"an event refuted {doubted[source]} from {source}, "
                                                       "and has shown nothing of this")
            elif held.get(field, True):
                yield _given(sound[0], self.name, tested=field in held)

    def _remember(self, kernel: Kernel, agreed: dict[Field, list[Stored]], held: Mapping[Field, bool]) -> None:
        """Write down what the event said; the answers are as good if that fails, so a failure is only logged."""
        for field in (f for f, true in held.items() if not true):
            # Every source that agreed is refuted with the one that was tried.
            for offset in (s.offset for s in agreed.get(field, [])):
                log.warning("%s: %s is refuted by an event: quarantined", field, told_apart([offset]))
                self._refuted.append(offset)
                if not self._db.read_only:
                    self._try(self._db.quarantine, kernel, field, offset.source, "refuted by an event")
        # Once a day: closing a file just written to waits for the disk four times, longer than all else on a busy one.
        today = rows.now()[:len("2026-01-31")]
        confirmed = [agreed[field][0].offset for field, true in held.items() if true
                     and not all((s.verified_at or "").startswith(today) for s in agreed[field])]
        if confirmed and not self._db.read_only:
            self._try(self._db.mark_verified, kernel, confirmed)

    def _try(self, write: Callable[..., None], *what: object) -> None:
        try:
            write(*what)
        except KcompatError as error:
            log.warning("not remembered: %s", error)


def _given(stored: Stored, name: str, *, tested: bool) -> Offset:
    evidence = {"recorded_source": stored.offset.source, "recorded_at": stored.recorded_at, "tested": tested}
    return replace(stored.offset, source=name, evidence=evidence)
