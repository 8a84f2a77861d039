"""Where programs of other people are found: in PATH, then where those are that only root has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable


def tool_path() -> str:
    """A user's PATH may leave out what only root has: mke2fs, modprobe."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def find_tool(tool: str) -> str | None:
    return shutil.which(tool, path=tool_path())


def missing(tools: Iterable[str]) -> str | None:
    """What to tell the user of those that are not installed; None if all are."""
    absent = [tool for tool in tools if find_tool(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
