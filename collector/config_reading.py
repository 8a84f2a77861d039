"""Reads the options: a TOML file, over it the environment, over both a command line; all faults at once, with lines."""

from __future__ import annotations

import difflib
import re
import tomllib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_origin

from collector.config import RULES, Options
from collector.config_keys import PREFIX, keys
from kcompat.errors import KcompatError
from kcompat.log_lines import without_secrets
from kcompat.nesting import too_deep
from kcompat.regular import open_regular

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

_LARGEST = 1 << 20
_TOO_DEEP = "tables and lists lie in each other too deeply"


class Fault(NamedTuple):
    """One thing that is wrong: `where` is a file's line, a variable or a flag."""

    where: str
    what: str


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


# A path in the tree of the file, and what is wrong there.
Place = tuple[str | int, ...]
Complaint = tuple[Place, str]


def read(file: Path | None = None, environment: Mapping[str, str] | None = None, flags: Iterable[Given] = (),
         judge: Callable[[Options], Iterable[Complaint]] | None = None) -> Options:
    """The options. Raises BadConfig, or KcompatError for a file that cannot be read.

    `judge` knows what types cannot say: whether there is such a dataset, for one.
    """
    text = _text(file) if file else ""
    tree = _tree(file, text)
    given = [*from_environment(environment or {}), *flags]
    unknown = [Fault(one.where, _no_such(one.key)) for one in given if one.key not in keys()]
    for one in given:
        if one.key in keys():
            _put(tree, one.key.split("."), _typed(one))
    over = {one.key: one.where for one in given}

    def where(path: Place) -> tuple[int, str]:
        """The line, 0 for what is in no file, and how to say it."""
        names = ".".join(part for part in path if isinstance(part, str))
        if flag := next((over[key] for key in over if names == key or names.startswith(f"{key}.")), None):
            return 0, flag
        line = line_of(text, path)
        return line, f"{file}:{line}"

    from pydantic import ValidationError

    try:
        options = _adapter().validate_python(tree)
        complaints: Iterable[Complaint] = judge(options) if judge else ()
    except ValidationError as error:
        complaints = [_complaint(one) for one in error.errors(include_url=False)]
    placed = sorted(((*where(path), what) for path, what in complaints), key=lambda one: one[0])
    if faults := [*unknown, *(Fault(told, what) for _, told, what in placed)]:
        raise BadConfig(faults)
    return options


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


def line_of(text: str, path: Place) -> int:
    """The line on which what stands at `path` begins, as far as it is there; 1 for what is not there at all.

    tomllib tells no positions. But the beginning of a file, up to the end of a statement, is a file too: the first
    that has the path ends with its statement.
    """
    lines = text.splitlines(keepends=True)
    begins, best, depth = 0, 0, 0
    for end in range(1, len(lines) + 1):
        try:
            tree = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
        if (reached := _reach(tree, path)) > depth:
            best, depth = begins, reached
        begins = end
    return best + 1


def _reach(tree: Any, path: Place) -> int:
    """How many steps of the path the tree has."""
    for depth, part in enumerate(path):
        try:
            tree = tree[part]
        except (LookupError, TypeError):
            return depth
    return len(path)


@cache
def _adapter() -> TypeAdapter[Options]:
    """pydantic takes 60 ms and 16 MB, so it is imported where there is something to check."""
    from pydantic import TypeAdapter

    return TypeAdapter(Options)


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
        raise BadConfig([Fault(f"{file}:{_overflowing(text)}", _TOO_DEEP)]) from None
    if path := too_deep(tree):
        raise BadConfig([Fault(f"{file}:{line_of(text, path[:1])}", _TOO_DEEP)])
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
    line = found[1] if found and found[1] else str(max(1, len(text.splitlines())))
    return Fault(f"{file}:{line}", f"not TOML: {words[:found.start()] if found else words}")


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
    parts = [part.strip() for part in given.value.split(",") if part.strip()]
    if hint in RULES or get_origin(hint) is tuple:
        return parts
    if get_origin(hint) is Mapping:
        return dict(part.partition("=")[::2] for part in parts) if all("=" in part for part in parts) else given.value
    return given.value


def _complaint(error: ErrorDetails) -> Complaint:
    path = error["loc"]
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return path, _no_such(_spelled(path))
    words = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return path, f"{_spelled(path)} = {without_secrets(repr(error['input']))}: {words}"


def _spelled(path: Place) -> str:
    """`outputs[1]`, `offsets.source`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _no_such(name: str) -> str:
    near = difflib.get_close_matches(name, [*keys(), *(key.partition(".")[0] for key in keys())], n=1)
    return f"there is no key {name}" + (f"; did you mean {near[0]}?" if near else "")
