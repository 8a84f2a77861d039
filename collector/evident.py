"""What a value evidently becomes, of the kinds that TOML has: where that needs no judge, a start needs no pydantic.

Only ever what pydantic would make of it too: of all else, above all of what is wrong, it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval, MinLen

from kcompat.errors import KcompatError

# Whose notes beside a type say what values there may be.
_JUDGES = ("annotated_types", "pydantic")


class Unsure(Exception):
    """Ask pydantic."""


def evident(hint: Any, value: Any) -> Any:
    """The value as the type `hint` has it. Raises Unsure."""
    try:
        return _of(hint, value)
    except (KcompatError, ValueError, OverflowError, RecursionError):
        raise Unsure from None


def evident_text(hint: Any, text: str) -> Any:
    """The number or the truth that a text is. Raises Unsure."""
    kinds = get_args(hint) or (hint,)
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    if int in kinds and re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        return int(text)
    if float in kinds and re.fullmatch(r"[0-9]{1,15}(?:\.[0-9]{1,15})?", text, re.ASCII):
        return float(text)
    raise Unsure


def _of(hint: Any, value: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *notes = parts
        return _noted(kind, notes, value)
    if origin in (Union, UnionType):
        return _of_union(parts, value)
    if origin is Literal:
        return _sure(value, type(value) is str and value in parts)
    if origin is tuple and parts[1:] == (...,) and type(value) in (list, tuple):
        return tuple(_of(parts[0], one) for one in value)
    if origin is Mapping and type(value) is dict:
        return {_of(parts[0], key): _of(parts[1], one) for key, one in value.items()}
    if is_dataclass(hint):
        return _of_class(hint, value)
    if type(value) is str:
        value.encode()  # half a pair of surrogates is what an environment has in place of what is no UTF-8
    if hint is Path and type(value) is str:
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    return _sure(value, (hint in (bool, int, float, str) and type(value) is hint)
                 or (hint is Path and isinstance(value, Path)))


def _noted(kind: Any, notes: list[Any], value: Any) -> Any:
    """A note with a mind of its own has a method `evident`: of the value, and what the type makes of one."""
    made: Callable[[Any], Any] = partial(_of, kind)
    for note in notes:
        if judge := getattr(note, "evident", None):
            made = partial(judge, made=made)
        elif isinstance(note, Interval | MinLen):
            made = partial(_within, note, made)
        elif hasattr(note, "__get_pydantic_core_schema__") or type(note).__module__.startswith(_JUDGES):
            raise Unsure
    return made(value)


def _within(bounds: Interval | MinLen, made: Callable[[Any], Any], value: Any) -> Any:
    got = made(value)
    if isinstance(bounds, MinLen):
        return _sure(got, len(got) >= bounds.min_length)
    if got is None:
        return got
    return _sure(got, (bounds.ge is None or got >= bounds.ge) and (bounds.gt is None or got > bounds.gt)
                 and (bounds.le is None or got <= bounds.le) and (bounds.lt is None or got < bounds.lt))


def _of_union(parts: tuple[Any, ...], value: Any) -> Any:
    kinds = [one for one in parts if one is not NoneType]
    if value is None and NoneType in parts:
        return None
    if len(kinds) != 1:
        raise Unsure
    return _of(kinds[0], value)


def _of_class(cls: Any, value: Any) -> Any:
    if type(value) is not dict:
        raise Unsure
    hints, needed = _members(cls)
    if not needed <= value.keys() <= hints.keys():
        raise Unsure
    return cls(**{name: _of(hints[name], one) for name, one in value.items()})


@cache
def _members(cls: Any) -> tuple[Mapping[str, Any], frozenset[str]]:
    """The types of what may be set, and what must be."""
    hints = get_type_hints(cls, include_extras=True)
    settable = [one for one in fields(cls) if one.init]
    return ({one.name: hints[one.name] for one in settable},
            frozenset(one.name for one in settable if one.default is one.default_factory is MISSING))


def _sure(value: Any, is_sure: bool) -> Any:
    if not is_sure:
        raise Unsure
    return value
