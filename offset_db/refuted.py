"""A source behind the memory: what an event has refuted is not believed when the next one says it again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from kcompat.engine import Resolver
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db.trust import told_apart


class Unrefuted:
    """Answers as `resolver`, but for what is among the `refuted`: that is unknown, for the guess to find."""

    def __init__(self, resolver: Resolver, refuted: Collection[Offset]) -> None:
        """`refuted` may grow until the source is asked: the event may be of this very run."""
        self.name = resolver.name
        self._resolver, self._refuted = resolver, refuted

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterator[Offset]:
        for offset in self._resolver.resolve(kernel, wanted):
            if any(offset.field is o.field and offset.same_place(o) for o in self._refuted):
                yield Offset.unknown(offset.field, self.name, f"{told_apart([offset])}, which was refuted before")
            else:
                yield offset
