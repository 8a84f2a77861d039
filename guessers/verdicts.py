"""From candidates to verdicts: what C says of struct layout decides among survivors, evidence decides on trust."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from guessers.search import Found, Sample
from kcompat.fields import Field
from kcompat.offsets import Offset

SOURCE = "guess"
# More false positives than this are expected by chance: too thin to be called an answer.
MAX_EXPECTED = 1e-2
# struct tcp_sock begins with inet_connection_sock, that with inet_sock, that with sock, that with sock_common:
# members of an inner one lie before the members an outer one adds. C guarantees it.
NESTING = ("sock_common", "sock", "inet_sock", "tcp_sock")


def judge(found: Iterable[Found], samples: Mapping[str, Sequence[Sample]],
          missing: Mapping[Field, str]) -> dict[Field, Offset]:
    """One Offset a field: ok with an offset, ambiguous with candidates, or unverified with the reason.

    `samples` are by base object; `missing` says why a field without samples has none.
    """
    by_field = {f.field: f for f in found}
    narrowed = contain(separate(contain({f.field: f.candidates for f in by_field.values()})))
    verdicts = {}
    for field, one in by_field.items():
        size = max((s.end for s in samples.get(field.base, ())), default=1)
        verdicts[field] = _verdict(one, narrowed[field], samples.get(field.base, ()), missing.get(field),
                                   len(room(field, narrowed, size)) / size)
    return verdicts


def room(field: Field, candidates: Mapping[Field, tuple[int, ...]], size: int) -> range:
    """The bytes in which the field can lie, between the settled fields of inner and of outer structs."""
    if field.struct not in NESTING:
        return range(size)
    settled = [(NESTING.index(f.struct), c[0]) for f, c in candidates.items()
               if f.struct in NESTING and len(c) == 1 and f is not field]
    depth = NESTING.index(field.struct)
    return range(max((o for d, o in settled if d < depth), default=-1) + 1,
                 min((o for d, o in settled if d > depth), default=size))


def contain(candidates: Mapping[Field, tuple[int, ...]]) -> dict[Field, tuple[int, ...]]:
    """Drops candidates that lie on the wrong side of a settled field of another struct of the nest."""
    result = dict(candidates)
    for field, offsets in result.items():
        if len(offsets) > 1:
            inside = room(field, result, max(offsets) + 1)
            result[field] = tuple(o for o in offsets if o in inside)
    return result


def separate(candidates: Mapping[Field, tuple[int, ...]]) -> dict[Field, tuple[int, ...]]:
    """Two fields never overlap: the place of a settled one is no candidate for another field of the same object."""
    result = dict(candidates)
    for field, offsets in candidates.items():
        if len(offsets) == 1:
            continue
        taken = [range(c[0], c[0] + f.width) for f, c in candidates.items()
                 if f is not field and f.base == field.base and len(c) == 1]
        result[field] = tuple(o for o in offsets if not any(o < r.stop and r.start < o + field.width for r in taken))
    return result


def _verdict(found: Found, narrowed: tuple[int, ...], samples: Sequence[Sample], missing: str | None,
             share: float) -> Offset:
    """`share` is the part of the object the field can lie in."""
    field = found.field
    evidence = dict(found.evidence) | {"candidates": list(found.candidates), "after_constraints": list(narrowed)}
    if not evidence.get("samples"):
        return Offset.unknown(field, SOURCE, missing or "no sample holds a known value of it", evidence=evidence)
    if not found.candidates:
        return Offset.unknown(field, SOURCE, f"no place agrees with all {evidence['samples']} samples",
                              evidence=evidence)
    if len(narrowed) != 1:
        return Offset.unknown(field, SOURCE, f"{len(found.candidates)} places agree with all "
                              f"{evidence['samples']} samples", candidates=found.candidates, evidence=evidence)
    expected = float(evidence["expected_false_positives"]) * share
    evidence["expected_false_positives"] = expected
    if expected > MAX_EXPECTED or evidence["null_survivors"] > 0:
        why = (f"{expected:.2g} places would agree by chance" if expected > MAX_EXPECTED
               else f"{evidence['null_survivors']} places agree with exchanged values too")
        return Offset.unknown(field, SOURCE, f"the evidence is too thin: {why}", evidence=evidence)
    evidence["runner_up"] = next((o for o in found.candidates if o != narrowed[0]), None)
    return Offset.known(field, narrowed[0], SOURCE, width=_width(field, narrowed[0], samples),
                        confidence=1.0 - expected, evidence=evidence)


def _width(field: Field, offset: int, samples: Sequence[Sample]) -> int:
    """The widest the field may be: as long as what would belong to it is zero in every sample, it reads the same."""
    for width in sorted(field.widths, reverse=True):
        tail = [s.window[offset + min(field.widths):offset + width] for s in samples if field in s.values]
        if offset % width == 0 and not any(any(t) for t in tail):
            return width
    return min(field.widths)
