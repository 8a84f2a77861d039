"""The order of tags in a line where they come in parts that many lines share: each part is spelled once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from collector.record import escaped

Pieces = tuple[str, ...]


class TagLayout:
    """Parts of tags, by the names each may have; no name is in two of them.

    Line protocol sorts tags, so a part falls into pieces: runs of names between which those of other parts come.
    A `template` has the pieces of the first part in it, and places for those of the others.
    """

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        """Raises ValueError where two parts have a name."""
        owner = {name: part for part, names in enumerate(parts) for name in names}
        if len(owner) != sum(len(set(names)) for names in parts):
            raise ValueError(f"a tag in two parts of {parts}")
        self._runs: list[tuple[int, list[str]]] = []
        for name in sorted(owner):
            if not self._runs or self._runs[-1][0] != owner[name]:
                self._runs.append((owner[name], []))
            self._runs[-1][1].append(name)

    def line_up(self) -> Callable[[Pieces], Pieces]:
        """Brings the pieces of the second part, of the third and so on into a template's order; one at least."""
        given = [at for at, (part, _) in enumerate(self._runs) if part]
        as_taken = sorted(given, key=lambda at: self._runs[at][0])
        return itemgetter(*(as_taken.index(at) for at in given))

    def template(self, measurement: str, tags: Mapping[str, str]) -> str:
        """A format: the tags of the first part, and a place for every piece of the others."""
        own = iter(self.pieces(0, tags))
        return "".join([measurement, *("%s" if part else next(own).replace("%", "%%") for part, _ in self._runs)])

    def pieces(self, part: int, tags: Mapping[str, str]) -> Pieces:
        """Empty ones where the part lacks these names; tags without a name or a value have no spelling."""
        return tuple([_spelled(names, tags) for of, names in self._runs if of == part])

    def gap(self, part: int, tags: Mapping[str, str], name: str) -> Gap:
        """As `pieces`, with a gap for the value of the tag `name`, which needs no escapes and is not empty."""
        runs = [names for of, names in self._runs if of == part]
        at = next(number for number, names in enumerate(runs) if name in names)
        before, after = runs[at][:runs[at].index(name)], runs[at][runs[at].index(name) + 1:]
        pieces = self.pieces(part, tags)
        return Gap(pieces[:at], f"{_spelled(before, tags)},{escaped(name)}=", _spelled(after, tags), pieces[at + 1:])


class Gap(NamedTuple):
    """The pieces (*head, before + value + after, *tail) for whatever value."""

    head: Pieces
    before: str
    after: str
    tail: Pieces


def _spelled(names: Sequence[str], tags: Mapping[str, str]) -> str:
    return "".join([f",{key}={value}" for name in names if name in tags
                    and (key := escaped(name)) and (value := escaped(tags[name]))])
