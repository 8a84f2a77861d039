"""One point of any dataset, and its two spellings: a JSON line and InfluxDB line protocol."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
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
              if (name := _name(key)) and (text := _field(value)) is not None]
    if not fields:
        raise ValueError(f"{record.measurement} record without a field: {dict(record.fields)}")
    tags = [f",{name}={text}" for key, value in sorted(record.tags.items())
            if (name := _name(key)) and (text := _name(value))]
    return f"{_measurement(record.measurement)}{''.join(tags)} {','.join(fields)} {record.time}"


def to_lines(records: Sequence[Record]) -> str:
    """Records as lines, without a newline at the end of the last. ValueError as `to_line_protocol`.

    Records of one dataset differ in values, not in names: what they have in common is spelled once. Where a value needs
    more than that (no tag is empty, every field an int of 64 bits), the record is spelled by itself.
    """
    lines = []
    for record in records:
        measurement, tags, fields, time = record
        shape = _shape(measurement, tuple(tags), tuple(fields), tuple(map(type, fields.values())))
        if shape is not None:
            text, keys = shape
            names = [*map(_name, map(tags.__getitem__, keys))]
            numbers = fields.values()
            if "" not in names and min(numbers) in _INT64 and max(numbers) in _INT64:
                lines.append(text % (*names, *numbers, time))
                continue
        lines.append(to_line_protocol(record))
    return "\n".join(lines)


@lru_cache(maxsize=256)
def _shape(measurement: str, tags: tuple[str, ...], fields: tuple[str, ...],
           types: tuple[type, ...]) -> tuple[str, tuple[str, ...]] | None:
    """A format of tag values, field values and time, and the tags in its order; None where values decide more."""
    if not fields or not all(map(_name, (*tags, *fields))) or set(types) != {int}:
        return None
    keys = tuple(sorted(tags))
    words = [_measurement(measurement), *(f",{_name(key)}=%s" for key in keys), " ",
             ",".join(f"{_name(key)}=%di" for key in fields), " %d"]
    plain = [_measurement(measurement), *map(_name, (*tags, *fields))]
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
def _name(text: str) -> str:
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
