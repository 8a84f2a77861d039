"""A file that does not say which kernel it is of: of what it tells, that is believed which an event bears out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kcompat.engine import Resolver
from kcompat.errors import BadInput
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State

# An event agrees with it, which is less than what a guess of many events has to say.
BORNE_OUT = 0.9

# Gets offsets, returns which of them an event of the running kernel bore out and which it refuted; of a field that is
# not in the answer it showed nothing, as of absent ones that may be. Raises KcompatError when it cannot tell at all.
Verify = Callable[[Kernel, Sequence[Offset]], Mapping[Field, bool]]


class Proved:
    """Answers as `resolver`, which reads `path`, for the running kernel; what no event shows stays unknown."""

    def __init__(self, resolver: Resolver, path: Path, verify: Verify) -> None:
        self.name = resolver.name
        self._resolver, self._path, self._verify = resolver, path, verify

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterator[Offset]:
        """Raises BadInput when the event refutes one of them: then it is another kernel's file."""
        told = list(self._resolver.resolve(kernel, wanted))
        known = [offset for offset in told if offset.state is State.KNOWN]
        held = self._verify(kernel, known) if known else {}
        if refuted := [field for field, true in held.items() if not true]:
            raise BadInput(self._path, f"not of the running kernel: one event refutes {len(refuted)} of its offsets, "
                                       f"{min(field.name for field in refuted)} for one")
        for offset in told:
            if held.get(offset.field):
                yield replace(offset, confidence=BORNE_OUT, evidence={**offset.evidence, "tested": True})
            elif offset.state is State.UNKNOWN:
                yield offset
            else:
                yield Offset.unknown(offset.field, self.name, f"{self._path.name} does not say which kernel it is of, "
                                                              "and no event has shown this")
