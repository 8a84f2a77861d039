"""Whether what was set is of the types of the keys, and in whose words it is said where it is not: ours."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args

from collector.adapter import Invalid, judged, validated
from collector.config import Options
from collector.config_keys import keys
from collector.config_lines import Place
from collector.evident import Unsure, evident, evident_text
from kcompat.log_lines import without_secrets

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Where something is wrong, and what.
Complaint = tuple[Place, str]

# What pydantic says of Python, for who writes TOML.
_WORDS = {"dataclass_type": "must be a table", "mapping_type": "must be a table", "dict_type": "must be a table",
          "tuple_type": "must be a list", "list_type": "must be a list", "path_type": "must be a path",
          "string_type": "must be text", "bool_type": "must be true or false", "int_type": "must be a whole number",
          "int_from_float": "must be a whole number", "float_type": "must be a number"}
_PLAIN = (bool, int, float)


def made(tree: Mapping[str, Any]) -> Options:
    """The options of what is right."""
    options: Options = validated(Options, tree)
    return options


def complaints(tree: Mapping[str, Any], lenient: Collection[str]) -> Iterator[Complaint]:
    """What is wrong with the types. For all keys but the `lenient` ones "10" is no number and "yes" not true."""
    with suppress(Unsure):
        evident(Options, tree)
        return
    for key in keys().values():
        if key.path not in lenient and plain(key.hint):
            yield from _strictly(key.path.split("."), tree, key.hint, timed=key.timed)
    try:
        made(tree)
    except Invalid as error:
        yield from map(_complaint, error.errors)


def plain(hint: Any) -> bool:
    """Whether it is a number or a truth, or none."""
    return hint in _PLAIN or any(one in _PLAIN for one in get_args(hint))


def lax(hint: Any, text: str) -> Any:
    """The number or truth that a text of the environment or of a command line is; the text where it is none."""
    with suppress(Unsure):
        return evident_text(hint, text)
    with suppress(Invalid):
        return judged(hint, text)
    return text


def no_such(name: str) -> str:
    near = difflib.get_close_matches(name, [*keys(), *(key.partition(".")[0] for key in keys())], n=1)
    return f"there is no key {name}" + (f"; did you mean {near[0]}?" if near else "")


def _strictly(path: list[str], tree: Any, hint: Any, *, timed: bool) -> Iterator[Complaint]:
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return
        tree = tree[name]
    if timed and isinstance(tree, str):
        return
    try:
        judged(hint, tree, strict=True)
    except Invalid as error:
        yield _complaint(error.errors[0], tuple(path))


def _complaint(error: ErrorDetails, within: Place = ()) -> Complaint:
    path = (*within, *error["loc"])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return path, no_such(_spelled(path))
    words = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return path, f"{_spelled(path)}{_shown(path, error['input'])}: {_WORDS.get(error['type'], words)}"


def _shown(path: Place, value: Any) -> str:
    """The value, where no secret can stand in it: tables may hold any, and outputs all there are."""
    if path[:1] == ("outputs",) or isinstance(value, dict | list | tuple):
        return ""
    return f" = {without_secrets(repr(value))}"


def _spelled(path: Place) -> str:
    """`outputs[1]`, `offsets.source`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
