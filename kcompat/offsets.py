"""Where a field lies on one kernel, with its state, its source and the evidence: what everything passes around."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dc_field
from enum import StrEnum
from typing import Any

from kcompat.fields import Field


class State(StrEnum):
    """What is known of a field. There is no fourth: an unknown offset is never 0 and never a default."""

    KNOWN = "known"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class Verdict(StrEnum):
    """What the evidence says: one answer, several, proof that there is none, or nothing to say."""

    OK = "ok"
    AMBIGUOUS = "ambiguous"
    ABSENT = "absent"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class Offset:
    """One source's answer for one field of one kernel.

    `offset` is in bytes from the start of the field's struct, `width` in bytes. `bit_offset` (0..7) and
    `bit_size` are set only for a bitfield that is not whole bytes at a byte boundary.
    `disputed` marks a field two sources disagree on: no later source may answer for it.
    """

    field: Field
    state: State
    source: str
    offset: int | None = None
    width: int | None = None
    bit_offset: int | None = None
    bit_size: int | None = None
    verdict: Verdict = Verdict.UNVERIFIED
    confidence: float = 0.0
    candidates: tuple[int, ...] = ()
    reason: str | None = None
    evidence: Mapping[str, Any] = dc_field(default_factory=dict)
    disputed: bool = False

    def __post_init__(self) -> None:
        if (self.offset is not None) != (self.state is State.KNOWN):
            raise ValueError(f"{self.field.name}: state {self.state} with offset {self.offset}")

    @classmethod
    def known(cls, field: Field, offset: int, source: str, *, width: int | None = None, confidence: float = 1.0,
              bit_offset: int | None = None, bit_size: int | None = None,
              evidence: Mapping[str, Any] | None = None) -> Offset:
        return cls(field, State.KNOWN, source, offset, field.width if width is None else width, bit_offset, bit_size,
                   Verdict.OK, confidence, (offset,), None, evidence or {})

    @classmethod
    def absent(cls, field: Field, source: str, reason: str, *, confidence: float = 1.0,
               evidence: Mapping[str, Any] | None = None) -> Offset:
        return cls(field, State.ABSENT, source, verdict=Verdict.ABSENT, confidence=confidence, reason=reason,
                   evidence=evidence or {})

    @classmethod
    def unknown(cls, field: Field, source: str, reason: str, *, candidates: tuple[int, ...] = (),
                evidence: Mapping[str, Any] | None = None, disputed: bool = False) -> Offset:
        verdict = Verdict.AMBIGUOUS if len(candidates) > 1 else Verdict.UNVERIFIED
        return cls(field, State.UNKNOWN, source, verdict=verdict, candidates=candidates, reason=reason,
                   evidence=evidence or {}, disputed=disputed)

    def same_place(self, other: Offset) -> bool:
        """Whether both say the same of the kernel (widths of one byte and two at the same place do not clash)."""
        return (self.state, self.offset, self.bit_offset) == (other.state, other.offset, other.bit_offset)

    def as_json(self) -> dict[str, Any]:
        """The shape of design section 8; stable and documented in the README."""
        return {
            "struct": self.field.struct,
            "member": self.field.member,
            "state": str(self.state),
            "offset": self.offset,
            "bit_offset": self.bit_offset,
            "width": self.width,
            "source": self.source,
            "verdict": str(self.verdict),
            "confidence": round(self.confidence, 4),
            "candidates": list(self.candidates),
            "reason": self.reason,
        }


class Offsets(Mapping[Field, Offset]):
    """Field -> Offset, in the order given; a field nobody spoke of is not in it."""

    def __init__(self, offsets: Iterable[Offset] = ()) -> None:
        self._by_field = {o.field: o for o in offsets}

    def __getitem__(self, field: Field) -> Offset:
        return self._by_field[field]

    def __iter__(self) -> Iterator[Field]:
        return iter(self._by_field)

    def __len__(self) -> int:
        return len(self._by_field)

    def known(self) -> Offsets:
        return Offsets(o for o in self.values() if o.state is State.KNOWN)
