"""Where programs of other people are found: our interpreter's directory first, then PATH, then what only root has."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path


def tool_path() -> str:
    """Our interpreter's directory first: vng finds its own helpers through PATH."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def find_tool(tool: str) -> str | None:
    return shutil.which(tool, path=tool_path())


def missing(tools: Iterable[str]) -> str | None:
    """What to tell the user of those that are not installed; None if all are."""
    absent = [tool for tool in tools if find_tool(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
