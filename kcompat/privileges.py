"""Which capabilities this process has, and what gives one that is missing to a service."""

from __future__ import annotations

import errno
import re
from pathlib import Path

# linux/capability.h. The second came with 5.8; older kernels let only the first load programs.
_CAP_SYS_ADMIN, _CAP_BPF = 21, 39
_CONTAINER = "a container by its securityContext or --cap-add"
_NO_BPF = f"CAP_BPF is missing: the systemd unit has it, {_CONTAINER}"
_NO_ADMIN = f"CAP_SYS_ADMIN is missing: the systemd unit has it with the drop-in full.conf, {_CONTAINER}"


def missing_for_bpf(proc: Path = Path("/proc")) -> str:
    """Which capability keeps this process from loading programs, and what gives it; empty where none does."""
    have, last = _effective(proc), _last(proc)
    if have is None or have >> _CAP_SYS_ADMIN & 1 or have >> _CAP_BPF & 1:
        return ""
    return _NO_BPF if last >= _CAP_BPF else _NO_ADMIN


def explained(error: Exception, proc: Path = Path("/proc")) -> str:
    """What went wrong, and where only CAP_SYS_ADMIN may do it and is missing, that: uprobes and setns(2)."""
    words = (error.strerror if isinstance(error, OSError) else None) or str(error)
    have = _effective(proc)
    if not isinstance(error, OSError) or error.errno not in (errno.EPERM, errno.EACCES) or have is None:
        return words
    return words if have >> _CAP_SYS_ADMIN & 1 else f"{words}: {_NO_ADMIN}"


def _effective(proc: Path) -> int | None:
    try:
        found = re.search(r"(?m)^CapEff:\s*([0-9a-f]+)$", (proc / "self" / "status").read_text())
    except OSError:
        return None
    return int(found[1], 16) if found else None


def _last(proc: Path) -> int:
    """The last that this kernel knows (3.2 on)."""
    try:
        return int((proc / "sys/kernel/cap_last_cap").read_text())
    except (OSError, ValueError):
        return 0
