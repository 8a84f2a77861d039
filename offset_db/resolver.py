"""The memory as a source of offsets: what it holds is put to the proof by one event before it is trusted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from offset_db import rows
from offset_db.db import Database
from offset_db.rows import Stored
from offset_db.trust import contradict, told_apart, usable

log = logging.getLogger(__name__)

# Gets the known offsets the memory would give, returns which of them an event bore out and which it refuted; of a
# field that is not in the answer it showed nothing. Raises KcompatError when it cannot tell at all.
Verify = Callable[[Kernel, Sequence[Offset]], Mapping[Field, bool]]


class DatabaseResolver:
    """Answers from the memory. With `verify` None nothing is verified: only for a kernel that is not running."""

    def __init__(self, db: Database, verify: Verify | None) -> None:
        self.name = "db"
        self._db = db
        self._verify = verify

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterator[Offset]:
        held = usable(self._db.offsets(kernel), kernel)
        agreed = {}
        for field in wanted:
            answers = held.get(field, [])
            offsets = [s.offset for s in answers]
            if offsets and contradict(offsets):
                yield Offset.unknown(field, self.name, f"sources disagree: {told_apart(offsets)}", disputed=True)
            elif answers:
                agreed[field] = answers
        yield from self._proved(kernel, agreed)

    def _proved(self, kernel: Kernel, agreed: dict[Field, list[Stored]]) -> Iterator[Offset]:
        # Nothing can be seen of a field that is not there, so only known ones are put to the proof.
        known = [answers[0].offset for answers in agreed.values() if answers[0].offset.state is State.KNOWN]
        held: Mapping[Field, bool] = {}
        if self._verify and known:
            try:
                held = self._verify(kernel, known)
            except KcompatError as error:
                # None of it then, absent ones included: a memory that cannot be checked is not trusted.
                for field in agreed:
                    yield Offset.unknown(field, self.name, f"remembered, but it cannot be verified: {error}")
                return
            self._remember(kernel, agreed, held)
        for field, answers in agreed.items():
            if held.get(field, True):
                yield _given(answers[0], self.name, tested=field in held)

    def _remember(self, kernel: Kernel, agreed: dict[Field, list[Stored]], held: Mapping[Field, bool]) -> None:
        """Write down what the event said; the answers are as good if that fails, so a failure is only logged."""
        for field in (f for f, true in held.items() if not true):
            # Every source that agreed is refuted with the one that was tried.
            for offset in (s.offset for s in agreed.get(field, [])):
                log.warning("%s: %s is refuted by an event: quarantined", field, told_apart([offset]))
                if not self._db.read_only:
                    self._try(self._db.quarantine, kernel, field, offset.source, "refuted by an event")
        # Once a day: closing a file just written to waits for the disk four times, longer than all else on a busy one.
        today = rows.now()[:len("2026-01-31")]
        confirmed = [field for field, true in held.items() if true
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
