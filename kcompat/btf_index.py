"""Where each type of a BTF type section begins: walked from the first one on, only as far as somebody asks (pure)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable

from kcompat.errors import BadInput

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)

# 32-bit words after the three of struct btf_type: fixed ones, and ones for each of `vlen` elements.
Shapes = dict[int, tuple[int, int]]
SHAPES: Shapes = {
    INT: (1, 0), PTR: (0, 0), ARRAY: (3, 0), STRUCT: (0, 3), UNION: (0, 3), ENUM: (0, 2), FWD: (0, 0), TYPEDEF: (0, 0),
    VOLATILE: (0, 0), CONST: (0, 0), RESTRICT: (0, 0), FUNC: (0, 0), FUNC_PROTO: (0, 2), VAR: (1, 0), DATASEC: (0, 3),
    FLOAT: (0, 0), DECL_TAG: (1, 0), TYPE_TAG: (0, 0), ENUM64: (0, 3),
}
_FEWEST = 3
# The kinds that are looked up by name, as the highest byte of the second word, with the kind flag and without.
_BY_NAME = re.compile(b"[" + bytes(kind | flag for kind in (INT, STRUCT, UNION, FWD) for flag in (0, 0x80)) + b"]")


def kind_of(info: int) -> int:
    # Seven bits since Linux 7.1, five before with the others always zero; vlen likewise 24 and 16.
    return info >> 24 & 0x7F


def vlen_of(info: int) -> int:
    return info & 0xFFFFFF


class Index:
    """Types by number, the first is 0. What lies behind the last one asked for is not looked at.

    A type's size follows from its second word alone, so there is no way to the n-th type but over all before it. Most
    types of a kernel are functions and lie behind the structs somebody wants: not walking there saves two thirds.
    """

    def __init__(self, words: memoryview, tops: bytes, shapes: Shapes, bad: Callable[[int, str], BadInput]) -> None:
        """`words` are the type section's, `tops` the highest byte of each; `bad` makes an error of number and fault."""
        self._words, self._tops, self._shapes, self._bad = words, tops, shapes, bad
        self._starts: list[int] = []
        self._at = 0
        # info -> words the type takes: worked out once for each of the few hundred values a file has.
        self._taken: dict[int, int] = {}

    def count(self) -> int:
        """How many types there are. Raises BadInput unless they fill the section to its end."""
        self._walk(len(self._words))
        return len(self._starts)

    def start(self, number: int) -> int | None:
        """The word at which this type starts; None if there are not so many. Raises BadInput."""
        starts, end = self._starts, len(self._words)
        while len(starts) <= number and self._at < end:
            self._walk(min(end, self._at + _FEWEST * (number + 1 - len(starts))))
        return starts[number] if 0 <= number < len(starts) else None

    def alike(self) -> list[int]:
        """The words that look like the start of an integer, struct, union or forward, in order; few are none."""
        return [hit.start() - 1 for hit in _BY_NAME.finditer(self._tops, 1)]

    def number(self, at: int) -> int | None:
        """Which type starts at this word; None if none does: then it is part of another. Raises BadInput."""
        self._walk(at + 1)
        number = bisect_left(self._starts, at)
        return number if self._starts[number:number + 1] == [at] else None

    def _walk(self, stop: int) -> None:
        """On, over all types that start before this word."""
        words, at, starts, taken = self._words, self._at, self._starts, self._taken
        add, fault = starts.append, None
        try:
            while at < stop:
                add(at)
                info = words[at + 1]
                try:
                    at += taken[info]
                except KeyError:
                    shape = self._shapes[kind_of(info)]
                    taken[info] = 3 + shape[0] + shape[1] * vlen_of(info)
                    at += taken[info]
        except IndexError:
            at = len(words) + 1
        except KeyError as unknown:
            fault = f"is of unknown kind {unknown}"
        if at > len(words):
            fault = "ends past the type section"
        if fault:
            # Whoever asks again is told again.
            self._at = starts.pop()
            raise self._bad(len(starts), fault)
        self._at = at
