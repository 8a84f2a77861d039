"""What it takes to hold more than 1,024 open files: the limit, and waits that know descriptors of any number."""

from __future__ import annotations

import logging
import resource
import select
from typing import Protocol

log = logging.getLogger(__name__)


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def allow_many() -> None:
    """As many as we may have: a soft limit of 1,024 is there for programs that use select(2), which we do not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.info("no more than %d open files: %s", soft, error)


def readable(file: int | HasFileno, timeout_s: float) -> bool:
    """Waits until there is something to read, or the end of it, but no longer than that."""
    waiting = select.poll()
    waiting.register(file, select.POLLIN)
    return bool(waiting.poll(max(0.0, timeout_s) * 1000))
