"""How deep tables and lists of a document lie in each other: past some depth whoever walks them runs out of stack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DEEPEST = 32


def too_deep(tree: Any) -> tuple[str | int, ...] | None:
    """The way to something that lies deeper than any document of ours does, None if nothing does."""
    left: list[tuple[tuple[str | int, ...], Any]] = [((), tree)]
    while left:
        path, value = left.pop()
        if len(path) > DEEPEST:
            return path
        inner: Iterable[tuple[str | int, Any]] = ()
        if isinstance(value, Mapping):
            inner = value.items()
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            inner = enumerate(value)
        left.extend(((*path, name), one) for name, one in inner)
    return None
