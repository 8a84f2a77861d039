"""The memory asked by name: what all builds of one release agree on, for a kernel that is not at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State, Verdict
from offset_db import trust
from offset_db.db import Database
from offset_db.exchange_names import distribution
from offset_db.rows import Remembered

# Distributions build a release more than once, and an import may not even say which of them it is of.
_CONFIDENCE = dict.fromkeys(trust.TRUSTED, 0.9)
_IMPORTED = 0.5


@dataclass(frozen=True, slots=True)
class Name:
    """A kernel by what its package is called; `distribution` may leave out its version, None is any."""

    release: str
    machine: str
    distribution: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.release, self.distribution, self.machine)))


class ReleaseResolver:
    """Answers with what is held of the builds of that name. Nothing verifies it, so the verdict is `unverified`.

    `source` is who said so first. Where builds or sources differ the field stays unknown, with the candidates.
    """

    name = "db"

    def __init__(self, db: Database, name: Name, besides: Kernel | None = None) -> None:
        """`besides` is a build that is not to be asked. Raises KcompatError when no other is held."""
        self.builds = tuple(r for r in db.show(name.release)
                            if _matches(r.kernel, name) and not (besides and besides.key == r.kernel.key))
        if not self.builds:
            raise KcompatError(f"{db.path}: holds nothing of {name}; `kcompat db kernels` lists what there is")

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterator[Offset]:
        told: dict[Field, list[tuple[Remembered, Offset]]] = {}
        for build in self.builds:
            for (field, _), answers in trust.standing(build.stored).items():
                told.setdefault(field, []).extend((build, s.offset) for s in answers.values() if trust.is_sure(s))
        for field in wanted:
            if told.get(field):
                yield self._agreed(field, told[field])
            else:
                yield Offset.unknown(field, self.name, "nothing is remembered of it for that release")

    def _agreed(self, field: Field, answers: list[tuple[Remembered, Offset]]) -> Offset:
        offsets = [offset for _, offset in answers]
        if trust.contradict(offsets):
            places = tuple(sorted({o.offset for o in offsets if o.offset is not None}))
            said = "; ".join(dict.fromkeys(f"{b.kernel.key[:12]}: {trust.told_apart([o])}" for b, o in answers))
            return Offset.unknown(field, self.name, f"builds of that release differ: {said}", candidates=places,
                                  disputed=True)
        best = min(offsets, key=lambda o: (trust.TRUSTED.index(o.source) if o.source in trust.TRUSTED else 9, o.source))
        evidence = {"recorded_source": best.source, "builds": sorted({b.kernel.key for b, _ in answers})}
        return replace(best, verdict=Verdict.ABSENT if best.state is State.ABSENT else Verdict.UNVERIFIED,
                       confidence=min(best.confidence, _CONFIDENCE.get(best.source, _IMPORTED)), evidence=evidence)


def _matches(kernel: Kernel, name: Name) -> bool:
    return (kernel.release == name.release and kernel.machine in (name.machine, "")
            and (name.distribution is None or fnmatchcase(distribution(kernel), f"{name.distribution}*")))
