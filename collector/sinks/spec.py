"""How a user names a sink: `KIND:PATH` or `KIND://HOST?KEY=VALUE`, or a table `{kind = "KIND", KEY = VALUE}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlsplit

from collector.adapter import Invalid, validated
from kcompat.errors import KcompatError

Options = TypeVar("Options")


def kind_of(spec: str | Mapping[str, Any]) -> str:
    """`datakit` of `datakit://…` and of `datakit+https://…`."""
    if isinstance(spec, Mapping):
        return str(spec.get("kind", ""))
    return re.split(r"[:+]", spec, maxsplit=1)[0]


def network_values(spec: str | Mapping[str, Any], scheme: str) -> dict[str, Any]:
    """The keys of a sink that sends; `scheme` is how its server is spoken to unless `KIND+SCHEME` says otherwise."""
    if isinstance(spec, Mapping):
        return {key: value for key, value in spec.items() if key != "kind"}
    head, _, rest = spec.partition("://")
    address, _, query = rest.partition("?")
    if not address.strip("/"):
        raise KcompatError(f"sink {shown(spec)!r}: names no host")
    values: dict[str, Any] = {"url": f"{head.partition('+')[2] or scheme}://{address}"}
    for key, value in parse_qsl(query, keep_blank_values=True):
        table, dot, name = key.partition(".")
        if dot:
            values.setdefault(table, {})[name] = value
        else:
            values[key] = value
    return values


def path_values(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a sink that writes a file: `KIND:PATH?max_bytes=…`; a question mark may be of the path too."""
    if isinstance(spec, Mapping):
        return {key: value for key, value in spec.items() if key != "kind"}
    _, colon, path = spec.partition(":")
    if colon and not path:
        raise KcompatError(f"sink {spec!r}: no path after the colon")
    before, mark, query = path.rpartition("?")
    if mark and re.fullmatch(r"(?:(?:max_bytes|max_age_s|keep)=[^&]*&?)+", query):
        return {"path": before, **dict(parse_qsl(query, keep_blank_values=True))}
    return {"path": path or "-"}


def built(options: type[Options], values: Mapping[str, Any], spec: str | Mapping[str, Any]) -> Options:
    """The values as options, checked; KcompatError says the first that is wrong."""
    try:
        checked: Options = validated(options, dict(values))
        return checked
    except Invalid as error:
        first = error.errors[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise KcompatError(f"sink {shown(spec)!r}: there is no key {key}") from None
        words = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise KcompatError(f"sink {shown(spec)!r}: {key}: {words}") from None


def shown(spec: str | Mapping[str, Any]) -> str:
    """Without what may be a password or a token in a URL, also where a / or ? in it is no %2F or %3F."""
    if isinstance(spec, str):
        return re.sub(r"(?s)(?<=://)(?:[^?]*@)?(?:[^/]*@)?|[?&].*", "", spec)
    url = str(spec.get("url", ""))
    return f"{kind_of(spec)} {shown(url) if '://' in url else shown(f'://{url}')[3:]}".strip()


def split(url: str) -> SplitResult:
    """ValueError where it is none, in words of our own: the library's quote what may be a password."""
    try:
        return urlsplit(url)
    except ValueError:
        raise ValueError("is no URL: half a pair of brackets, or a character no host has; "
                         "in a password write %5B for [ and so on") from None


def bare(url: str) -> str:
    """For names and logs: scheme, host, port, path."""
    try:
        parts = split(url)
    except ValueError as error:
        raise KcompatError(f"sink {shown(url)!r}: {error}") from None
    return f"{parts.scheme}://{f'{parts.netloc}{parts.path}'.rpartition('@')[2]}"
