"""The guess as a source of offsets, beside the database, BTF and DWARF."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from guessers.hooks import BACKENDS, Backend
from kcompat.errors import KcompatError
from kcompat.fields import CATALOGUE, Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from kcompat.probe import require_bpf

if TYPE_CHECKING:
    from guessers.guess import Guess


class GuessResolver:
    """Answers by experiment, for the running kernel only. `last` is the whole guess behind the answers."""

    name = "guess"

    def __init__(self, backends: tuple[Backend, ...] = BACKENDS) -> None:
        self._backends = backends
        self.last: Guess | None = None
        self.near: Mapping[Field, tuple[str, int]] = {}
        """What the nearest known kernels have; see `guess`."""
        self.spared: Collection[Field] = ()
        """What no guess is made for, if nothing else is to be guessed."""

    def resolve(self, kernel: Kernel, wanted: Sequence[Field]) -> Iterable[Offset]:
        """Raises KcompatError for a kernel that does not run here, Missing or Unsupported as `guess` does.

        The whole catalogue is guessed whatever is wanted: it costs the same, and every settled field narrows
        down where its neighbours can lie.
        """
        if kernel.key != Kernel.running().key:
            raise KcompatError(f"only the running kernel can be guessed, not {kernel.release or kernel.key}")
        if set(self.spared).issuperset(wanted):
            return [Offset.unknown(field, "none", f"not worth a guess while {field.module} is not loaded")
                    for field in wanted]
        require_bpf()
        # What a start that finds everything in the database does without.
        from guessers.guess import guess

        self.last = guess(CATALOGUE, backends=self._backends, near=self.near)
        return [self.last.offsets[field] for field in wanted]
