"""What became of each program at each hook: for the table that says what a collector sees, and what it does not."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class HookState(StrEnum):
    """`available`: it could be hooked and is not wanted; `degraded`: hooked, and not all of it works."""

    AVAILABLE = "available"
    MISSING = "missing"
    REFUSED = "refused"
    ATTACHED = "attached"
    DEGRADED = "degraded"


class HookStatus(NamedTuple):
    """One program at one hook; `reason` is empty where there is nothing to explain."""

    program: str
    hook: str
    state: HookState
    reason: str = ""
