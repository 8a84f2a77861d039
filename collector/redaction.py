"""What nobody shall read in records: rules that put *** in its place, in paths of HTTP and in command lines of bash."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
        text = expression.sub(_masked, text)
    return text


def _masked(match: re.Match[str]) -> str:
    if not match.re.groups:
        return MASK if match[0] else ""
    text, at = "", match.start()
    for begin, end in sorted(match.span(group) for group in range(1, match.re.groups + 1)):
        # One that matched nothing is at -1; one within another is hidden with it.
        if at <= begin < end:
            text += match.string[at:begin] + MASK
            at = end
    return text + match.string[at:match.end()]


def _bad(rule: str, fault: str) -> KcompatError:
    return KcompatError(f"redaction {rule!r}: {fault}")
