"""From candidates to verdicts: what C says of struct layout decides among survivors, evidence decides on trust."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from guessers.search import Found, Sample
from kcompat.fields import Field, in_one_union, is_part
from kcompat.offsets import Offset

SOURCE = "guess"
# More false positives than this are expected by chance: too thin to be called an answer.
MAX_EXPECTED = 2e-3
# struct tcp_sock begins with inet_connection_sock, that with inet_sock, that with sock, that with sock_common:
# members of an inner one lie before the members an outer one adds. C guarantees it.
NESTING = ("sock_common", "sock", "inet_sock", "tcp_sock")
_TURNS = 8  # each settles at least one field more, or is the last

Settled = Mapping[Field, int]


def judge(found: Iterable[Found], samples: Mapping[str, Sequence[Sample]],
          missing: Mapping[Field, str]) -> dict[Field, Offset]:
    """One Offset a field: ok with an offset, ambiguous with candidates, or unverified with the reason.

    `samples` are by base object; `missing` says why a field without samples has none.
    """
    by_field = {f.field: f for f in found}
    sizes = {f: max((s.end for s in samples.get(f.base, ())), default=1) for f in by_field}
    settled = settle(by_field, sizes)
    return {field: _verdict(one, settled, sizes[field], samples.get(field.base, ()), missing.get(field))
            for field, one in by_field.items()}


def settle(found: Mapping[Field, Found], sizes: Mapping[Field, int]) -> dict[Field, int]:
    """The fields with one place left that the evidence and all the others bear out.

    A field with thin evidence settles nothing for others: were it wrong, it would push others off their places.
    """
    settled: dict[Field, int] = {}
    for _ in range(_TURNS):
        places = {f: fitting(f, one.candidates, settled) for f, one in found.items()}
        # A lone candidate that does not fit takes part: it is as good a reason to doubt those it clashes with.
        alone = {f: (p or found[f].candidates) for f, p in places.items()}
        grown = peaceful({f: p[0] for f, p in alone.items()
                          if len(p) == 1 and not doubt(found[f], share(f, settled, sizes[f]))})
        if grown == settled:
            return settled
        settled = grown
    return {}  # they cannot agree


def fitting(field: Field, candidates: Iterable[int], settled: Settled) -> tuple[int, ...]:
    """The candidates that clash with no settled field."""
    return tuple(o for o in candidates if not clashes(field, o, settled))


def peaceful(places: Settled) -> dict[Field, int]:
    """What is left when those that clash with most others are taken out, until nobody clashes.

    Of two that clash with each other alone neither stays: nothing says which of them is wrong.
    """
    left = dict(places)
    while worst := max((len(clashes(f, o, left)) for f, o in left.items()), default=0):
        left = {f: o for f, o in left.items() if len(clashes(f, o, left)) < worst}
    return left


def clashes(field: Field, offset: int, settled: Settled) -> list[Field]:
    """The settled fields of the same object that the field cannot lie with: it overlaps them, or is in their struct."""
    return [other for other, at in settled.items() if other is not field and other.base == field.base
            and (_collide(field, offset, other, at) or _outside(field, offset, other, at))]


def _collide(field: Field, offset: int, other: Field, at: int) -> bool:
    """Whether the two share memory as their struct does not mean it: a part is in its whole, a union is one place."""
    end, other_end = offset + min(field.widths), at + min(other.widths)
    if is_part(field, other):
        return not (at <= offset and end <= other_end)
    if is_part(other, field):
        return not (offset <= at and other_end <= end)
    if in_one_union(field, other):
        return offset != at
    return offset < other_end and at < end


def _outside(field: Field, offset: int, other: Field, at: int) -> bool:
    """Whether one of the two lies on the wrong side of the other, by the nesting of their structs."""
    if field.struct not in NESTING or other.struct not in NESTING:
        return False
    depth = NESTING.index(field.struct) - NESTING.index(other.struct)
    return (depth < 0 and offset > at) or (depth > 0 and offset < at)


def share(field: Field, settled: Settled, size: int) -> float:
    """The part of the object in which the field can lie, between settled fields of inner and of outer structs."""
    if field.struct not in NESTING:
        return 1.0
    depth = NESTING.index(field.struct)
    nest = [(NESTING.index(f.struct), o) for f, o in settled.items() if f.struct in NESTING and f is not field]
    start = max((o for d, o in nest if d < depth), default=-1) + 1
    end = min((o for d, o in nest if d > depth), default=size)
    return max(end - start, 1) / size


def doubt(found: Found, part: float) -> str | None:
    """Why the evidence would not carry an answer even if only one place were left; None when it does.

    `part` is the share of the object that was in question.
    """
    evidence = found.evidence
    if (expected := evidence["expected_false_positives"] * part) > MAX_EXPECTED:
        same = f", as all {evidence['samples']} samples hold the same value" * (evidence.get("distinct_values") == 1)
        return f"{expected:.2g} places would agree by chance{same}"
    if evidence["null_survivors"] > 0:
        return f"{evidence['null_survivors']} places agree with exchanged values too"
    return None


def _verdict(found: Found, settled: Settled, size: int, samples: Sequence[Sample], missing: str | None) -> Offset:
    field = found.field
    places = fitting(field, found.candidates, settled)
    evidence = dict(found.evidence) | {"candidates": list(found.candidates), "after_constraints": list(places)}
    if not evidence.get("samples"):
        return Offset.unknown(field, SOURCE, missing or "no sample holds a known value of it", evidence=evidence)
    all_samples = f"all {evidence['samples']} samples"
    all_samples += ", which hold the same value" * (evidence.get("distinct_values") == 1)
    if not found.candidates:
        return Offset.unknown(field, SOURCE, found.why or f"no place agrees with {all_samples}", evidence=evidence)
    evidence["excluded_by"] = {str(o): sorted({f.name for f in clashes(field, o, settled)})
                               for o in found.candidates if o not in places}
    part = share(field, settled, size)
    evidence["share_of_object"] = round(part, 4)
    evidence["expected_false_positives"] = expected = found.evidence["expected_false_positives"] * part
    if not places:
        return Offset.unknown(field, SOURCE, f"no place that agrees with {all_samples} can be its own: other "
                              "fields lie there, or their structs do", candidates=found.candidates, evidence=evidence)
    if len(places) > 1:
        return Offset.unknown(field, SOURCE, f"{len(places)} places agree with {all_samples}", candidates=places,
                              evidence=evidence)
    if why := doubt(found, part):
        return Offset.unknown(field, SOURCE, f"the evidence is too thin: {why}", evidence=evidence)
    if settled.get(field) != places[0]:
        return Offset.unknown(field, SOURCE, f"the one place that agrees with {all_samples} is disputed by other "
                              "fields", evidence=evidence)
    evidence["runner_up"] = next((o for o in found.candidates if o != places[0]), None)
    return Offset.known(field, places[0], SOURCE, width=_width(field, places[0], samples),
                        confidence=1.0 - expected, evidence=evidence)


def _width(field: Field, offset: int, samples: Sequence[Sample]) -> int:
    """The widest the field may be: as long as what would belong to it is zero in every sample, it reads the same."""
    for width in sorted(field.widths, reverse=True):
        tail = [s.window[offset + min(field.widths):offset + width] for s in samples if field in s.values]
        if offset % width == 0 and not any(any(t) for t in tail):
            return width
    return min(field.widths)
