"""What nobody shall read in records: rules that put *** in its place, in paths of HTTP and in command lines of bash."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kcompat.errors import KcompatError

KINDS = "path=EXPRESSION, command=EXPRESSION"
MASK = "***"


@dataclass(frozen=True, slots=True)
class Redactions:
    """Regular expressions. What one matches is hidden; of one with groups only what the groups match."""

    paths: tuple[re.Pattern[str], ...] = ()
    commands: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def parse(cls, rules: Iterable[str]) -> Redactions:
        """From rules as a user writes them: `path=/users/([^/]+)`, `command=(?i)password\\S*`."""
        found: dict[str, list[re.Pattern[str]]] = {"path": [], "command": []}
        for rule in rules:
            kind, _, expression = rule.partition("=")
            if kind.strip() not in found or not expression:
                raise _bad(rule, f"expected one of {KINDS}")
            try:
                found[kind.strip()].append(re.compile(expression))
            except re.error as error:
                raise _bad(rule, str(error)) from None
        return cls(tuple(found["path"]), tuple(found["command"]))

    def path(self, text: str) -> str:
        return _redacted(self.paths, text)

    def command(self, text: str) -> str:
        return _redacted(self.commands, text)


NO_REDACTIONS = Redactions()


def _redacted(expressions: tuple[re.Pattern[str], ...], text: str) -> str:
    for expression in expressions:
        hidden, at = "", 0
        # One may lie within another, or before it: a group may be in what is only looked at, ahead or behind.
        for begin, end in sorted(_spans(expression, text)):
            if end > at:
                hidden += text[at:begin] + (MASK if begin >= at else "")
                at = end
        text = hidden + text[at:]
    return text


def _spans(expression: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """What is to be hidden; of what matched nothing, nothing is."""
    groups = range(1, expression.groups + 1) if expression.groups else (0,)
    for match in expression.finditer(text):
        yield from (span for group in groups if (span := match.span(group))[0] < span[1])


def _bad(rule: str, fault: str) -> KcompatError:
    return KcompatError(f"redaction {rule!r}: {fault}")
