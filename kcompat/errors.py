"""The few errors a user can meet; each message names the thing that was wrong, on one line."""

from __future__ import annotations

import os

from kcompat.printable import printable


class KcompatError(Exception):
    """Anything kcompat says to a user instead of a traceback."""

    exit_code = 1


class BadInput(KcompatError):
    """A file that is not what it should be: truncated, foreign, corrupt."""

    def __init__(self, path: str | os.PathLike[str], fault: str) -> None:
        # Faults quote what stands in the file: never a line break or a terminal's escape sequence.
        fault = printable(fault)
        super().__init__(f"{os.fspath(path)}: {fault}")
        self.path = os.fspath(path)
        self.fault = fault


class Usage(KcompatError):
    """Asked for in a way that has no answer, however well everything is."""

    exit_code = 2


class Missing(KcompatError):
    """Something this machine could have but has not: root, a package, a mounted file system."""

    exit_code = 2


class Unsupported(KcompatError):
    """Something this kernel cannot do, or forbids: no BPF, lockdown, no usable hook."""

    exit_code = 3


class NotAllowed(KcompatError):
    """Something that is there, and for somebody else to ask."""

    exit_code = 4


class UnknownField(KcompatError):
    """A program needs fields whose offsets are not known, so it is not loaded."""

    def __init__(self, program: str, fields: list[str], reasons: dict[str, str] | None = None) -> None:
        # What all have in common is said once: of a kernel nobody knows it is every field.
        by_reason: dict[str, list[str]] = {}
        for name in fields:
            by_reason.setdefault((reasons or {}).get(name, ""), []).append(name)
        told = "; ".join(", ".join(names) + (f" ({reason})" if reason else "") for reason, names in by_reason.items())
        super().__init__(f"{program} is not loaded: no known offset for {told}")
        self.program = program
        self.fields = fields
