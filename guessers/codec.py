"""Dataclasses as JSON and back, by their annotations: what does not fit them is refused. Bytes are written in hex."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from kcompat.fields import Field, find


def encode(value: Any, masked: Callable[[Any], Any] = lambda value: value) -> Any:
    """JSON's kinds of values only; `masked` may put another int or other bytes in the place of each."""
    if isinstance(value, Field):
        return value.name
    if isinstance(value, (bytes, bytearray)):
        return masked(bytes(value)).hex()
    if isinstance(value, int) and not isinstance(value, bool):
        return masked(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: encode(getattr(value, name), masked) for name in _members(type(value))}
    if isinstance(value, Mapping):
        return [[encode(key, masked), encode(one, masked)] for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [encode(one, masked) for one in value]
    return value


def decode(kind: Any, data: Any) -> Any:
    """The value of type `kind` that `encode` made `data` of. Raises ValueError for anything else."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # only ever with None
        return None if data is None else decode(next(a for a in arguments if a is not types.NoneType), data)
    if kind is Field:
        return find(_of(str, data))
    if kind is bytes:
        return bytes.fromhex(_of(str, data))
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(kind, type) and is_dataclass(kind):
        hints, given = _members(kind), _of(dict, data)
        if hints.keys() != given.keys():
            raise ValueError(f"{kind.__name__} with other members")
        return kind(**{name: decode(hint, given[name]) for name, hint in hints.items()})
    if origin in (dict, Mapping):
        return {decode(arguments[0], key): decode(arguments[1], one) for key, one in map(_pair, _of(list, data))}
    if origin is list:
        return [decode(arguments[0], one) for one in _of(list, data)]
    if origin is tuple and arguments[-1] is Ellipsis:
        return tuple(decode(arguments[0], one) for one in _of(list, data))
    if origin is tuple:
        if len(_of(list, data)) != len(arguments):
            raise ValueError(f"{len(data)} values instead of {len(arguments)}")
        return tuple(decode(one, given) for one, given in zip(arguments, data, strict=True))
    return _of(kind, data)


def _pair(data: Any) -> list[Any]:
    if len(_of(list, data)) != 2:
        raise ValueError("no pair of key and value")
    return list(data)


def _of(kind: type, data: Any) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{type(data).__name__} instead of {kind.__name__}")
    return data


@cache
def _members(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass; members that begin with _ are its own affair."""
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind) if not one.name.startswith("_")}
