"""Text of strangers, as people see it: what a file or another process says is no escape code of a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """On one line, with a question mark for whatever is not to be seen: control characters, line breaks, surrogates."""
    return "".join(char if char.isprintable() else "?" for char in text)
