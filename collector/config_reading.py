"""Reads the options: a TOML file, over it the environment, over both a command line; all faults at once, with lines."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from collector.config import RULES, Options
from collector.config_keys import PREFIX, keys
from collector.config_lines import Place, line_of
from collector.config_types import Complaint, complaints, lax, made, no_such, plain
from kcompat.errors import KcompatError
from kcompat.nesting import too_deep
from kcompat.regular import open_regular

_LARGEST = 1 << 20
_TOO_DEEP = "tables and lists lie in each other too deeply"


class Fault(NamedTuple):
    """One thing that is wrong: `where` is a file's line, a variable or a flag; `line` is None for these two."""

    where: str
    what: str
    line: int | None = None


class BadConfig(KcompatError):
    """What a user set is wrong; `faults` has all of it, the message the first."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        more = f" (and {len(faults) - 1} more: see `kcompat config check`)" if len(faults) > 1 else ""
        super().__init__(f"{faults[0].where}: {faults[0].what}{more}")


class Given(NamedTuple):
    """A key set outside of the file: `where` is the flag or the variable; text is read as the key's type asks."""

    where: str
    key: str
    value: Any


def read(file: Path | None = None, environment: Mapping[str, str] | None = None, flags: Iterable[Given] = (),
         judge: Callable[[Mapping[str, Any]], Iterable[Complaint]] | None = None) -> Options:
    """The options. Raises BadConfig, or KcompatError for a file that cannot be read.

    `judge` knows what types cannot say: whether there is such a dataset, for one. It is shown what was set, right or
    wrong in its types, so that all there is to complain of is told at once.
    """
    text = _text(file) if file else ""
    tree = _tree(file, text)
    given = [*from_environment(environment or {}), *flags]
    unknown = [Fault(one.where, no_such(one.key)) for one in given if one.key not in keys()]
    for one in given:
        if one.key in keys():
            _put(tree, one.key.split("."), _typed(one))
    over = {one.key: one.where for one in given}

    def told(path: Place, what: str) -> Fault:
        names = ".".join(part for part in path if isinstance(part, str))
        if flag := next((over[key] for key in over if names == key or names.startswith(f"{key}.")), None):
            return Fault(flag, what)
        return _at(file, line_of(text, path), what)

    wrong: dict[Place, str] = {}
    for path, what in (*complaints(tree, over), *(judge(tree) if judge else ())):
        wrong.setdefault(path, what)
    placed = sorted((told(path, what) for path, what in wrong.items()), key=lambda one: one.line or 0)
    if faults := [*unknown, *placed]:
        raise BadConfig(faults)
    return made(tree)


def from_environment(environment: Mapping[str, str]) -> list[Given]:
    """`KCOMPAT_COLLECT_INTERVAL_S=10` sets interval_s, `KCOMPAT_COLLECT_OFFSETS__SOURCE` offsets.source."""
    return [Given(name, name.removeprefix(PREFIX).lower().replace("__", "."), value)
            for name, value in sorted(environment.items()) if name.startswith(PREFIX)]


def assignment(words: str) -> Given:
    """A key after --set: `offsets.source=btf`."""
    key, equals, value = words.partition("=")
    if not equals:
        raise BadConfig([Fault("--set", f"{words!r}: expected KEY=VALUE")])
    return Given(f"--set {key.strip()}", key.strip(), value.strip())


def _text(file: Path) -> str:
    try:
        with open_regular(file) as opened:
            raw = opened.read(_LARGEST + 1)
    except OSError as error:
        raise KcompatError(f"{file}: {error.strerror}") from None
    try:
        if len(raw) > _LARGEST:
            raise ValueError
        return raw.decode()
    except ValueError:
        raise KcompatError(f"{file}: not a configuration: no UTF-8 text, or over 1 MB") from None


def _tree(file: Path | None, text: str) -> dict[str, Any]:
    """What the text says. Raises BadConfig where it is no TOML, or deeper than anything could follow."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadConfig([_syntax(file, text, error)]) from None
    except RecursionError:
        raise BadConfig([_at(file, _overflowing(text), _TOO_DEEP)]) from None
    if path := too_deep(tree):
        raise BadConfig([_at(file, line_of(text, path[:1]), _TOO_DEEP)])
    return tree


def _overflowing(text: str) -> int:
    """The line with which the text becomes too deep for tomllib."""
    lines = text.splitlines(keepends=True)

    def overflows(end: int) -> bool:
        try:
            tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            return False
        except RecursionError:
            return True
        return False

    return 1 + bisect_left(range(1, len(lines) + 1), True, key=overflows)


def _syntax(file: Path | None, text: str, error: tomllib.TOMLDecodeError) -> Fault:
    """tomllib says its line at the end of its words; at the end of a document it says just that."""
    words = str(error)
    found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", words)
    line = int(found[1]) if found and found[1] else 1 + text.rstrip("\n").count("\n")
    return _at(file, line, f"not TOML: {words[:found.start()] if found else words}")


def _at(file: Path | None, line: int, what: str) -> Fault:
    return Fault(f"{file}:{line}", what, line)


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *tables, name = path
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            return  # the file says something else there, which is told as what it is
        tree = inner
    tree[name] = value


def _typed(given: Given) -> Any:
    """Text becomes what the key's type is written as: a list with commas, a table with commas and equals signs."""
    if not isinstance(given.value, str):
        return given.value
    hint = keys()[given.key].hint
    if plain(hint):
        return lax(hint, given.value)
    parts = [part.strip() for part in given.value.split(",") if part.strip()]
    if hint in RULES or get_origin(hint) is tuple:
        return parts
    if get_origin(hint) is Mapping:
        return dict(part.partition("=")[::2] for part in parts) if all("=" in part for part in parts) else given.value
    return given.value
