"""Whether programs at raw tracepoints may be preempted.

One that has begun on a processor is not begun again there before it ends: every event of whoever runs meanwhile is left
out.
"""

from __future__ import annotations

from functools import cache

from kcompat import btf
from kcompat.errors import KcompatError

# Tracepoints that leave preemption on have a domain of sleepable RCU instead, which has memory on each processor (7.0).
_DOMAIN = "tracepoint_srcu_srcu_data"


@cache
def preempts_programs() -> bool:
    """True as well where nothing can be told: that costs time, the other mistake events."""
    try:
        return btf.load(btf.RUNNING).mentions(_DOMAIN)
    except KcompatError:
        return True
