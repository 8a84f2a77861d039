"""What the memory holds, as values, and how each becomes a row and comes back: no SQL, no I/O."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from kcompat.errors import KcompatError
from kcompat.fields import Field, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State, Verdict

# The columns of an answer, besides the kernel's.
ANSWER = ("field", "source", "module_build_id", "value", "width", "bit_offset", "bit_size", "state", "verdict",
          "confidence", "candidates", "reason", "evidence", "recorded_at", "verified_at", "quarantined_at",
          "quarantine_reason")

Row = tuple[Any, ...]
_STATES, _VERDICTS = {str(s): s for s in State}, {str(v): v for v in Verdict}
_NOTHING = "{}"
# What a source said that was asked in another database, and contradicts what it said here.
_ELSEWHERE = " elsewhere"
_MOST_PLACES = 100
WINDOW = ("kernel_id", "run", "object", "hook", "bytes", "expected")


class Unreadable(Exception):
    """A row that this schema cannot have produced."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One source's answer as it is remembered. `module_build_id` is set for a field that a module owns.

    The times are UTC, ISO 8601. A quarantined answer was refuted: it is kept, and never answers again.
    """

    offset: Offset
    recorded_at: str
    module_build_id: str | None = None
    verified_at: str | None = None
    quarantined_at: str | None = None
    quarantine_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Raw kernel memory of one sample of one guess, with what was known to stand in it: for replay and bug reports."""

    run: str
    object: str
    hook: str
    data: bytes
    expected: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remembered:
    """All that is held of one kernel build."""

    kernel: Kernel
    first_seen: str
    last_seen: str
    stored: tuple[Stored, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A field of one kernel that sources place differently: source -> answer."""

    kernel: Kernel
    field: Field
    answers: Mapping[str, Offset]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def merged(held: Stored | None, new: Stored) -> Stored:
    """What to remember when the source of `held` speaks again.

    One build has one layout, so a source that finds nothing today does not undo what it found before. The same
    answer given twice is still as verified, or as refuted, as it was: repeating a claim is no evidence for it.
    """
    if held is None:
        return new
    if new.offset.state is State.UNKNOWN and held.offset.state is not State.UNKNOWN:
        return held
    if held.module_build_id == new.module_build_id and held.offset.same_place(new.offset):
        return replace(new, verified_at=held.verified_at, quarantined_at=held.quarantined_at,
                       quarantine_reason=held.quarantine_reason)
    return new


def united(held: Mapping[str, Stored], theirs: Stored) -> tuple[Stored, ...]:
    """What to remember when another database has an answer: who was asked first does not matter.

    `held` is what is known of the field, by source. A refutation anywhere holds everywhere. The same source at several
    places is not settled by who came last: each further place is kept under a name of its own, which is never answered
    with and shows among the disagreements.
    """
    source = theirs.offset.source
    if theirs.offset.state is State.UNKNOWN:
        return () if source in held else (theirs,)
    told = {name: s for name, s in held.items()
            if s.offset.state is not State.UNKNOWN and speaker(name) == speaker(source)}
    before = told.get(source)
    if before and before.module_build_id != theirs.module_build_id:
        return (max(before, theirs, key=lambda s: s.recorded_at),)
    there = {name: _borne_out(s, theirs) for name, s in told.items()
             if s.module_build_id == theirs.module_build_id and s.offset.same_place(theirs.offset)}
    gives_way = before is None or (before.quarantined_at and not theirs.quarantined_at)
    if gives_way and source not in there and source == speaker(source):
        # What it says itself, not what it is said to have said elsewhere, is under its own name.
        return (theirs, *there.values())
    if there:
        return tuple(there.values())
    if before and theirs.quarantined_at:
        return ()
    for name in (source, *_elsewhere(source)):
        if name not in told or told[name].quarantined_at:
            return (_named(theirs, name),)
    return ()


def speaker(source: str) -> str:
    """Who said it, whatever name an answer has that came by a merge."""
    return source.partition(_ELSEWHERE)[0]


def _elsewhere(source: str) -> Iterator[str]:
    """The names for its further places. Of more the field is disputed no more than it is."""
    name = speaker(source) + _ELSEWHERE
    return (f"{name} {number}" if number > 1 else name for number in range(1, _MOST_PLACES))


def _borne_out(held: Stored, theirs: Stored) -> Stored:
    """Two answers of one place, under the name of the first."""
    latest = max(held, theirs, key=lambda s: s.recorded_at)
    refuted = held if held.quarantined_at else theirs
    return replace(_named(latest, held.offset.source), quarantined_at=refuted.quarantined_at,
                   quarantine_reason=refuted.quarantine_reason,
                   verified_at=max(held.verified_at or "", theirs.verified_at or "") or None)


def _named(stored: Stored, source: str) -> Stored:
    return replace(stored, offset=replace(stored.offset, source=source))


def answer_row(stored: Stored) -> Row:
    """The values of ANSWER."""
    offset = stored.offset
    return (
        offset.field.name, offset.source, stored.module_build_id, offset.offset, offset.width, offset.bit_offset,
        offset.bit_size, str(offset.state), str(offset.verdict), offset.confidence, json.dumps(offset.candidates),
        offset.reason, to_json(offset.evidence), stored.recorded_at, stored.verified_at, stored.quarantined_at,
        stored.quarantine_reason,
    )


def stored_of(values: Row) -> Stored | None:
    """The answer that these values of ANSWER are; None for a field that is not in this kcompat's catalogue."""
    (name, source, module_build_id, offset, width, bit_offset, bit_size, state, verdict, confidence, candidates, reason,
     evidence, recorded_at, verified_at, quarantined_at, quarantine_reason) = values
    try:
        field = find(name)
    except KcompatError:
        return None
    try:
        _no_bytes(values)
        answer = Offset(field, _STATES[state], source, offset, width, bit_offset, bit_size, _VERDICTS[verdict],
                        confidence, _candidates(candidates), reason, from_json(evidence))
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"the row of {field.name} from {source!r}: {error}") from error
    return Stored(answer, recorded_at, module_build_id, verified_at, quarantined_at, quarantine_reason)


def decoded(answers: Iterable[Row]) -> Iterator[Stored]:
    """Those of a field that is in the catalogue."""
    return (s for row in answers if (s := stored_of(row)))


@lru_cache(maxsize=4096)
def _candidates(text: str) -> tuple[int, ...]:
    # A look-up reads a hundred of them, most of one small number.
    return tuple(json.loads(text))


def _no_bytes(values: Iterable[Any]) -> None:
    """SQLite keeps them in a column of text too, for who writes them there."""
    if bytes in map(type, values):
        raise Unreadable("bytes where there is text")


def kernel_of(row: Mapping[str, Any]) -> Kernel:
    _no_bytes(row.values())
    unnamed = Kernel(None, row["release"], row["version"], row["machine"], from_json(row["modules"]))
    return unnamed if unnamed.key == row["build_id"] else replace(unnamed, build_id=row["build_id"])


def window_row(kernel_id: int, window: Window) -> Row:
    """The values of WINDOW."""
    return kernel_id, window.run, window.object, window.hook, window.data, to_json(window.expected)


def window_of(row: Mapping[str, Any]) -> Window:
    return Window(row["run"], row["object"], row["hook"], row["bytes"], from_json(row["expected"]))


def to_json(value: Mapping[str, Any]) -> str:
    if not value:
        return _NOTHING
    # default=str: an odd value in the evidence must not cost the answer it belongs to.
    return json.dumps(dict(value), default=str)


def from_json(text: str) -> dict[str, Any]:
    # Most are empty, and a look-up reads hundreds.
    if text == _NOTHING:
        return {}
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise Unreadable(f"{text[:40]!r}: {error}") from error
