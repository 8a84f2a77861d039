"""Kernel configurations as text: fragments merged in order, and what of them a build did not get."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_SET = re.compile(r"(CONFIG_\w+)=(\S.*)")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")


def parse(text: str) -> dict[str, str]:
    """Options of a ``.config`` or a fragment; one that is not set is ``n``. Raises ValueError for any other line."""
    options: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _SET.fullmatch(line.strip()):
            options[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line.strip()):
            options[match[1]] = "n"
        elif line.strip() and not line.startswith("#"):
            raise ValueError(f"line {number} is no option: {line!r}")
    return options


def merge(fragments: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """All options; of two values the later fragment's."""
    merged: dict[str, str] = {}
    for fragment in fragments:
        merged.update(fragment)
    return merged


def render(options: Mapping[str, str]) -> str:
    """As ``KCONFIG_ALLCONFIG`` reads it."""
    return "".join(f"# {name} is not set\n" if value == "n" else f"{name}={value}\n" for name, value in options.items())


def unmet(requested: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """What kconfig made of the request without a word: an option whose dependencies are off is dropped silently."""
    return [
        f"{name}={value} requested but the kernel's .config says {_said(actual, name)}"
        for name, value in requested.items()
        if actual.get(name, "n") != value
    ]


def _said(actual: Mapping[str, str], name: str) -> str:
    value = actual.get(name)
    if value is None:
        return "nothing: its dependencies are off, or this version does not know it"
    return "not set" if value == "n" else f"{name}={value}"
