"""JSON Lines: one line a kernel, then one for each answer, sorted, so that two exports can be compared by `diff`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

from kcompat.errors import BadInput, KcompatError
from kcompat.fields import find
from kcompat.kernel import Kernel
from kcompat.nesting import too_deep
from kcompat.offsets import Offset, State, Verdict
from offset_db.exchange_names import text_of
from offset_db.rows import Remembered, Stored

HEADER = {"format": "kcompat-offsets", "version": 1}


def lines(remembered: Iterable[Remembered]) -> Iterator[str]:
    """The lines of a file. The same memory gives the same bytes, whatever order it is stored in."""
    yield _line(HEADER)
    for r in sorted(remembered, key=lambda r: r.kernel.key):
        yield _line({"kernel": r.kernel.key, "release": r.kernel.release, "version": r.kernel.version,
                     "machine": r.kernel.machine, "modules": dict(sorted(r.kernel.modules.items())),
                     "first_seen": r.first_seen, "last_seen": r.last_seen})
        yield from (_line(_answer(r.kernel.key, s))
                    for s in sorted(r.stored, key=lambda s: (s.offset.field.name, s.offset.source)))


def parse(text: Iterable[str], path: str | PathLike[str]) -> Iterator[Remembered]:
    """What the lines say. Fields that this catalogue does not know are passed over, as in the database.

    Raises BadInput with the number of the first line that is wrong.
    """
    kernel: dict[str, Any] | None = None
    stored: list[Stored] = []
    for number, line in enumerate(text, 1):
        try:
            row = json.loads(line)
            if "\\u" in line:
                # Evidence is kept as JSON, which takes half a pair of surrogates; a later export could not.
                json.dumps(row, ensure_ascii=False).encode()
            if number == 1:
                if row != HEADER:
                    raise ValueError(f"not {json.dumps(HEADER)}")
            elif "release" in row:
                if kernel:
                    yield _remembered(kernel, stored)
                # Made here too, so that a fault is found with its line.
                kernel, stored = row, []
                _remembered(kernel, stored)
            elif kernel is None or row["kernel"] != kernel["kernel"]:
                raise ValueError("an answer that does not follow its kernel")
            elif answer := _stored(row):
                stored.append(answer)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise BadInput(path, f"line {number}: {_told(error)}") from error
    if kernel:
        yield _remembered(kernel, stored)


def _line(row: dict[str, Any]) -> str:
    # default=str: as the evidence is stored in the database.
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str) + "\n"


def _answer(key: str, stored: Stored) -> dict[str, Any]:
    offset = stored.offset
    return {"kernel": key} | offset.as_json() | {
        "confidence": offset.confidence, "bit_size": offset.bit_size, "evidence": dict(offset.evidence),
        "module_build_id": stored.module_build_id, "recorded_at": stored.recorded_at,
        "verified_at": stored.verified_at, "quarantined_at": stored.quarantined_at,
        "quarantine_reason": stored.quarantine_reason}


def _remembered(row: dict[str, Any], stored: list[Stored]) -> Remembered:
    release, version, machine = (text_of(row[name]) for name in ("release", "version", "machine"))
    modules = {text_of(name): text_of(build_id) for name, build_id in row["modules"].items()}
    unnamed = Kernel(None, release, version, machine, modules)
    key = text_of(row["kernel"])
    kernel = unnamed if unnamed.key == key else Kernel(key, release, version, machine, modules)
    return Remembered(kernel, text_of(row["first_seen"]), text_of(row["last_seen"]), tuple(stored))


def _stored(row: dict[str, Any]) -> Stored | None:
    try:
        field = find(f"{row['struct']}.{row['member']}")
    except KcompatError:
        return None
    offset = Offset(
        field, State(row["state"]), text_of(row["source"]), _number(row["offset"]), _number(row["width"]),
        _number(row["bit_offset"]), _number(row["bit_size"]), Verdict(row["verdict"]), _confidence(row["confidence"]),
        tuple(_candidate(c) for c in row["candidates"]), _maybe(row["reason"]), _evidence(row["evidence"]))
    return Stored(offset, text_of(row["recorded_at"]), _maybe(row["module_build_id"]), _maybe(row["verified_at"]),
                  _maybe(row["quarantined_at"]), _maybe(row["quarantine_reason"]))


def _maybe(value: object) -> str | None:
    return None if value is None else text_of(value)


def _number(value: object) -> int | None:
    if value is None or (type(value) is int and 0 <= value < 1 << 31):
        return value
    raise TypeError(f"{value!r} is not an offset")


def _candidate(value: object) -> int:
    if (number := _number(value)) is None:
        raise TypeError(f"{value!r} is not an offset")
    return number


def _evidence(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no evidence")
    if too_deep(value):
        raise ValueError("evidence of things that lie in each other too deeply")
    if value:
        # Python reads Infinity, and 1e999 as that; SQLite takes no such JSON.
        json.dumps(value, allow_nan=False)
    return value


def _confidence(value: object) -> float:
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    raise TypeError(f"{value!r} is not a confidence")


def _told(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else f"{error}" or type(error).__name__
