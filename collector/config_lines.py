"""On which line of a TOML document each key and each element of a list stands, which tomllib does not tell."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from enum import Enum, auto
from functools import lru_cache

# A path in the tree of the document.
Place = tuple[str | int, ...]

_TOKEN = re.compile(r'''
    (?P<text>"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\])*"|'[^']*')
    | (?P<comment>\#[^\n]*) | (?P<blank>[ \t\r]+) | (?P<newline>\n) | (?P<sign>[\[\]{},=.])
    | (?P<bare>[^\s"'\#\[\]{},=.]+)''', re.VERBOSE | re.DOTALL)


class _At(Enum):
    HEADER = auto()
    KEY = auto()
    VALUE = auto()
    AFTER = auto()


def line_of(text: str, path: Place) -> int:
    """The line of what stands at `path`, as far as it is there; 1 for what is not there at all."""
    found = lines(text)
    while path not in found:
        path = path[:-1]
    return found[path]


@lru_cache(maxsize=1)
def lines(text: str) -> Mapping[Place, int]:
    """Every path of a document that tomllib takes, and the line where it is first said."""
    return _Lines(text).found


class _Lines:
    """One reading. The document is known to be right, so whatever comes is what may come there."""

    def __init__(self, text: str) -> None:
        self.found: dict[Place, int] = {(): 1}
        self._tables: Counter[Place] = Counter()
        self._base: Place = ()
        # The lists and inline tables that are open, each with the index or the keys of what is read in it.
        self._open: list[tuple[Place, int | None]] = []
        self._keys: list[str] = []
        self._at, self._is_array = _At.KEY, False
        line = 1
        for token in _TOKEN.finditer(text):
            if token.lastgroup not in ("comment", "blank"):
                self._take(token.lastgroup or "", token[0], line)
            line += token[0].count("\n")

    def _take(self, kind: str, word: str, line: int) -> None:
        if kind == "newline":
            if not self._open and self._at is not _At.VALUE:
                self._at, self._keys, self._is_array = _At.KEY, [], False
        elif self._at is _At.HEADER:
            self._header(kind, word, line)
        elif self._at is _At.KEY:
            self._key(kind, word, line)
        elif self._at is _At.VALUE:
            self._value(word, line)
        elif word == ",":
            path, index = self._open[-1]
            self._open[-1] = path, None if index is None else index + 1
            self._at, self._keys = (_At.KEY if index is None else _At.VALUE), []
        elif word in ("]", "}") and self._open:
            self._open.pop()

    def _header(self, kind: str, word: str, line: int) -> None:
        if word == "[":
            self._is_array = True
        elif word == "]":
            self._base = self._table()
            self._say(self._base, line)
            self._at = _At.AFTER
        elif kind != "sign":
            self._keys.append(_name(word))

    def _key(self, kind: str, word: str, line: int) -> None:
        if word == "[":
            self._at = _At.HEADER
        elif word == "}":
            self._open.pop()
            self._at = _At.AFTER
        elif word == "=":
            self._say(self._path(), line)
            self._at = _At.VALUE
        elif kind != "sign":
            self._keys.append(_name(word))

    def _value(self, word: str, line: int) -> None:
        if word == "]":
            self._open.pop()
            self._at = _At.AFTER
            return
        path = self._path()
        self._say(path, line)
        if word == "[":
            self._open.append((path, 0))
        elif word == "{":
            self._open.append((path, None))
            self._at, self._keys = _At.KEY, []
        else:
            self._at = _At.AFTER

    def _path(self) -> Place:
        if not self._open:
            return (*self._base, *self._keys)
        path, index = self._open[-1]
        return (*path, *self._keys) if index is None else (*path, index)

    def _table(self) -> Place:
        """Of the header that has been read: below a list of tables it means the last of them."""
        path: Place = ()
        for name in self._keys[:-1]:
            path = (*path, name)
            if path in self._tables:
                path = (*path, self._tables[path] - 1)
        path = (*path, self._keys[-1])
        if self._is_array:
            self._tables[path] += 1
            path = (*path, self._tables[path] - 1)
        return path

    def _say(self, path: Place, line: int) -> None:
        for end in range(len(path), 0, -1):
            if path[:end] in self.found:
                return
            self.found[path[:end]] = line


def _name(word: str) -> str:
    """A key as it is meant; one in quotes may have escapes."""
    name: str = tomllib.loads(f"_ = {word}")["_"] if word[0] in "\"'" else word
    return name
