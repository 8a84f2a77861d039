"""Turns offsets into the prelude of a BPF C program, and reads off a program which fields it needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from kcompat.errors import UnknownField
from kcompat.fields import CATALOGUE, Field
from kcompat.offsets import Offset, Offsets, State

_BY_MACRO = {f.macro: f for f in CATALOGUE}
_LOCAL_INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)
_TOKEN = re.compile(r"\b[a-z]\w*?__\w+\b")
_DIRECTIVE = re.compile(r"^\s*#\s*(\w+)\s*(.*)$")


def read_source(path: Path) -> str:
    """A C source in one piece: each ``#include "x.h"`` of a file beside it is replaced by that file."""
    text = path.read_text()
    return _LOCAL_INCLUDE.sub(lambda found: read_source(path.with_name(found[1])), text)


def defines(offsets: Mapping[Field, Offset]) -> str:
    """One ``#define`` block per known field, in catalogue order; unknown and absent fields get nothing.

    A bitfield inside a byte gets no macro either: READ() copies whole bytes. The source of an offset is not said:
    the same offsets make the same C, so what is compiled stays usable whoever found them.
    """
    lines = []
    for field, offset in offsets.items():
        if offset.state is State.KNOWN and offset.bit_offset is None:
            lines += [
                f"#define OFFSET_{field.macro} {offset.offset}",
                f"#define WIDTH_{field.macro} {offset.width}",
                f"#define HAVE_{field.macro} 1",
            ]
    return "\n".join(lines) + "\n"


def needed(source: str) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """The fields a C source cannot do without, and those it uses only under ``#ifdef HAVE_<field>``."""
    hard: dict[Field, None] = {}
    soft: dict[Field, None] = {}
    guards: list[set[str]] = []
    for line in _without_comments(source).splitlines():
        if directive := _DIRECTIVE.match(line):
            _follow(guards, *directive.groups())
            continue
        guarded = set().union(*guards)
        for token in _TOKEN.findall(line):
            if field := _BY_MACRO.get(token):
                (soft if token in guarded else hard)[field] = None
    return tuple(hard), tuple(f for f in soft if f not in hard)


def required(source: str) -> tuple[Field, ...]:
    """The fields without which the source must not be compiled."""
    return needed(source)[0]


def render(name: str, source: str, offsets: Mapping[Field, Offset], constants: Mapping[str, int] | None = None) -> str:
    """The C as it will be compiled. Raises UnknownField before clang can say something obscure."""
    hard, soft = needed(source)
    missing = [f for f in hard if f not in offsets or offsets[f].state is not State.KNOWN]
    if missing:
        reasons = {f.name: offsets[f].reason or "" for f in missing if f in offsets}
        raise UnknownField(name, [f.name for f in missing], reasons)
    used = Offsets(offsets[f] for f in _in_catalogue_order({*hard, *soft}) if f in offsets)
    settings = "".join(f"#define {key} {value}\n" for key, value in sorted((constants or {}).items()))
    return settings + defines(used) + source


def _in_catalogue_order(fields: Iterable[Field]) -> list[Field]:
    wanted = set(fields)
    return [f for f in CATALOGUE if f in wanted]


def _follow(guards: list[set[str]], word: str, rest: str) -> None:
    """Keeps the stack of conditions; each level is the set of fields it guarantees."""
    if word in ("if", "ifdef", "ifndef"):
        plain = word != "ifndef" and not re.search(r"\|\||!", rest)
        guards.append(set(re.findall(r"HAVE_(\w+)", rest)) if plain else set())
    elif word in ("else", "elif") and guards:
        guards[-1] = set()
    elif word == "endif" and guards:
        guards.pop()


def _without_comments(source: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", source, flags=re.DOTALL).replace("\\\n", " ")
