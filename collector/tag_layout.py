"""The order of tags in a line where they come in parts that many lines share: each part is spelled once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

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

    def line_up(self, values: int) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        """Brings pieces of the second part, of the third and so on, and so many values, into a template's order."""
        given = [at for at, (part, _) in enumerate(self._runs) if part]
        as_taken = sorted(given, key=lambda at: self._runs[at][0])
        places = [as_taken.index(at) for at in given]
        return itemgetter(*places, *range(len(places), len(places) + values))

    def template(self, measurement: str, tags: Mapping[str, str], rest: str) -> str:
        """A format: the tags of the first part, a place for every piece of the others, and `rest`."""
        own = iter(self.pieces(0, tags))
        return "".join([measurement.replace("%", "%%"),
                        *("%s" if part else next(own).replace("%", "%%") for part, _ in self._runs), rest])

    def pieces(self, part: int, tags: Mapping[str, str]) -> Pieces:
        """Empty ones where the part lacks these names; tags without a name or a value have no spelling."""
        return tuple(["".join([f",{key}={value}" for name in names if name in tags
                               and (key := escaped(name)) and (value := escaped(tags[name]))])
                      for of, names in self._runs if of == part])
