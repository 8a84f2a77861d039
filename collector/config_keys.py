"""The keys of the configuration as a list, derived from its classes, and the sample file that shows them all."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from collector.config import RULES, Duration, Example, Options, Restart
from collector.exclusions import Exclusions
from collector.redaction import Redactions

PREFIX = "KCOMPAT_COLLECT_"
_WIDTH = 100
_HEAD = """\
# kcompat collect: every key, with its default. Check a file with `kcompat config check FILE`.
#
# Any key may also be set in the environment, as KCOMPAT_COLLECT_INTERVAL_S or KCOMPAT_COLLECT_OFFSETS__SOURCE, and
# on the command line, as --set offsets.source=btf. The command line wins over the environment, that over the file.
# After SIGHUP the file is read again; keys marked (restart) keep the value they had at the start.
"""


class Key(NamedTuple):
    """One key: `path` with dots as --set takes it; `default` None is nothing; `restart`: not taken over by SIGHUP.

    `timed`: a number of seconds that may be text with units too.
    """

    path: str
    hint: Any
    doc: str
    default: Any
    example: Any
    restart: bool
    timed: bool

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"{PREFIX}{self.path.replace('.', '__').upper()}"


class Section(NamedTuple):
    """A table of the file: its keys stand under `[path]`."""

    path: str
    doc: str


@cache
def keys() -> Mapping[str, Key]:
    """Every key by its path, in the order of the sample."""
    return {one.path: one for one in _walk(Options, "") if isinstance(one, Key)}


def sample() -> str:
    """A file that says what the defaults are: as such it changes nothing."""
    lines = [_HEAD]
    for one in _walk(Options, ""):
        if isinstance(one, Section):
            lines += [f"# {one.doc}", f"[{one.path}]", ""]
            continue
        doc = one.doc + (" (restart)" if one.restart else "")
        lines += textwrap.wrap(doc, _WIDTH, break_on_hyphens=False, initial_indent="# ", subsequent_indent="# ")
        name = one.path.rpartition(".")[2]
        if one.example is None:
            lines.append(f"{name} = {_toml(one.default)}")
        else:
            lines.append(f"# {name} = {_toml(one.example)}")
        lines.append("")
    return "\n".join(lines)


def taken_over(old: Options, new: Options) -> tuple[Options, list[str]]:
    """What a running collector makes of new options: as they are, but for (restart) keys; those that differ by name."""
    kept = [path for path, key in keys().items() if key.restart and _at(old, path) != _at(new, path)]
    for path in kept:
        new = _with(new, path.split("."), _at(old, path))
    return new, kept


def _at(options: Any, path: str) -> Any:
    for name in path.split("."):
        options = getattr(options, name)
    return options


def _with(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(section, **{name: _with(getattr(section, name), rest, value) if rest else value})


def _walk(cls: type, prefix: str) -> Iterator[Key | Section]:
    """Keys before sections, because what follows a `[table]` in a file is of that table."""
    hints = get_type_hints(cls, include_extras=True)
    sections = []
    for one in fields(cls):
        hint, notes = hints[one.name].__origin__, hints[one.name].__metadata__
        doc = next(note for note in reversed(notes) if isinstance(note, str))
        path = prefix + one.name
        if isinstance(hint, type) and is_dataclass(hint) and hint not in RULES:
            sections.append((Section(path, doc), hint))
            continue
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        example = next((note.value for note in notes if isinstance(note, Example)), None)
        yield Key(path, hint, doc, default, example, Restart in notes,
                  any(isinstance(note, Duration) for note in notes))
    for section, hint in sections:
        yield section
        yield from _walk(hint, f"{section.path}.")


def _toml(value: Any) -> str:
    """A value as TOML spells it; a string of JSON is one of TOML too."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return json.dumps(str(value))
        case Mapping():
            return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
        case Exclusions() | Redactions():
            return "[]"
        case _:
            return "[" + ", ".join(map(_toml, value)) + "]"
