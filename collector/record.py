"""One point of any dataset, and its two spellings: a JSON line and InfluxDB line protocol."""

from __future__ import annotations

import json
import math
import operator
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

FieldValue = int | float | str | bool

_CACHED_NAMES = 1 << 14
_CONTROL = dict.fromkeys((*range(0x20), 0x7F), " ")
_PLAIN = re.compile(r"[\w.:*/-]+", re.ASCII)
# The backslash is no special of its own in a name or a tag value: it only escapes what follows. So one in front of a
# special, or at the end, has no spelling that every parser reads alike (influxdb issues 5407, 6008): it is left out.
_BACKSLASH_THAT_ESCAPES = re.compile(r"\\+(?=[,= ]|\Z)")
_NAME_SPECIAL = re.compile(r"[,= ]")
# InfluxDB reads "=" in a measurement as it stands, and a backslash before it as a backslash.
_MEASUREMENT_SPECIAL = re.compile(r"[, ]")
# A raw newline is legal between quotes, but readers that split at newlines are many: it is shown as \n instead.
_STRING = {**_CONTROL, ord("\t"): "\t", ord("\n"): "\\\\n", ord("\r"): "\\\\r", ord('"'): '\\"', ord("\\"): "\\\\"}
_INT64 = range(-(1 << 63), 1 << 63)


class Record(NamedTuple):
    """One point; `time` in ns since the epoch. An enricher makes a new one with `_replace(tags=...)`."""

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, FieldValue]
    time: int


class Records(Sequence[Record]):
    """Records that are made when they are asked for, and know a shorter way to their lines."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        """To any sequence of equal records."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    @abstractmethod
    def lines(self) -> list[str]:
        """As `to_line_protocol` has them."""

    @abstractmethod
    def tagged(self, tags: Mapping[str, str]) -> Records:
        """With these tags too, none of which replaces one of their own."""


def tagged(records: Sequence[Record], tags: Mapping[str, str]) -> Sequence[Record]:
    """Records with these tags too, none of which replaces one of their own."""
    if not tags:
        return records
    if isinstance(records, Records):
        return records.tagged(tags)
    return [record._replace(tags={**tags, **record.tags}) for record in records]


def apart(records: Iterable[Record]) -> list[Record]:
    """Of those that differ in fields alone each next one is a nanosecond later.

    InfluxDB, and what reads its line protocol, keeps one point of a measurement, a set of tags and a time: the last.
    """
    made: Counter[tuple[tuple[str, str], ...]] = Counter()
    found = []
    for record in records:
        tags = tuple(record.tags.items())
        found.append(record._replace(time=record.time + made[tags]))
        made[tags] += 1
    return found


def to_json(record: Record) -> str:
    """The record as one line of JSON, ASCII only, so that no locale and no U+2028 can break the line."""
    return json.dumps({"measurement": record.measurement,
                       "tags": {_unicode(key): _unicode(value) for key, value in record.tags.items()},
                       "fields": {_unicode(key): _unicode(value) if isinstance(value, str) else value
                                  for key, value in record.fields.items() if _is_finite(value)},
                       "time": record.time}, separators=(",", ":"), allow_nan=False)


def to_line_protocol(record: Record) -> str:
    """The record as one line (no newline at its end); ValueError if it has no field that line protocol can spell.

    Tags are sorted and empty ones left out; so are fields that are NaN, infinite or wider than 64 bits: one such
    value would make a server refuse the whole batch.
    """
    fields = [f"{name}={text}" for key, value in record.fields.items()
              if (name := escaped(key)) and (text := _field(value)) is not None]
    if not fields:
        raise ValueError(f"{record.measurement} record without a field: {dict(record.fields)}")
    tags = [f",{name}={text}" for key, value in sorted(record.tags.items())
            if (name := escaped(key)) and (text := escaped(value))]
    return f"{_measurement(record.measurement)}{''.join(tags)} {','.join(fields)} {record.time}"


def to_jsons(records: Sequence[Record]) -> list[str]:
    """Each as `to_json` has it."""
    return [*map(to_json, records)]


def to_lines(records: Sequence[Record]) -> list[str]:
    """Each as `to_line_protocol` has it; ValueError as there.

    Records of one dataset differ in values, not in names: what they have in common is spelled once. Where a value needs
    more than that (no tag is empty, every field an int of 64 bits), the record is spelled by itself.
    """
    if isinstance(records, Records):
        return records.lines()
    lines = []
    for record in records:
        measurement, tags, fields, time = record
        shape = _shape(measurement, tuple(tags), tuple(fields), tuple(map(type, fields.values())))
        if shape is not None:
            text, keys = shape
            names = [*map(escaped, map(tags.__getitem__, keys))]
            numbers = fields.values()
            if "" not in names and min(numbers) in _INT64 and max(numbers) in _INT64:
                lines.append(text % (*names, *numbers, time))
                continue
        lines.append(to_line_protocol(record))
    return lines


@lru_cache(maxsize=256)
def _shape(measurement: str, tags: tuple[str, ...], fields: tuple[str, ...],
           types: tuple[type, ...]) -> tuple[str, tuple[str, ...]] | None:
    """A format of tag values, field values and time, and the tags in its order; None where values decide more."""
    if not fields or not all(map(escaped, (*tags, *fields))) or set(types) != {int}:
        return None
    keys = tuple(sorted(tags))
    words = [_measurement(measurement), *(f",{escaped(key)}=%s" for key in keys), " ",
             ",".join(f"{escaped(key)}=%di" for key in fields), " %d"]
    plain = [_measurement(measurement), *map(escaped, (*tags, *fields))]
    return ("".join(words), keys) if not any("%" in word for word in plain) else None


def fits(value: FieldValue) -> bool:
    """Whether other systems have a number for it: finite, and of 64 bits."""
    return value in _INT64 if isinstance(value, int) else _is_finite(value)


def _field(value: FieldValue) -> str | None:
    if isinstance(value, str):
        return f'"{_unicode(value).translate(_STRING)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value}i" if value in _INT64 else None
    return repr(value) if math.isfinite(value) else None


@lru_cache(maxsize=_CACHED_NAMES)
def escaped(text: str) -> str:
    """A tag key, tag value or field key: few of them, seen over and over."""
    if _PLAIN.fullmatch(text):
        return text
    return _NAME_SPECIAL.sub(r"\\\g<0>", _tame(text))


def _measurement(text: str) -> str:
    return _MEASUREMENT_SPECIAL.sub(r"\\\g<0>", _tame(text))


def _tame(text: str) -> str:
    return _BACKSLASH_THAT_ESCAPES.sub("", _unicode(text).translate(_CONTROL))


def _unicode(text: str) -> str:
    """Without lone surrogates: names read from the kernel may carry them, and UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _is_finite(value: FieldValue) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
