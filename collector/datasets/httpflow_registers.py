"""Where on its kernel stack a thread's registers of user space stand: learnt of system calls of our own."""

from __future__ import annotations

import os
import threading

from kcompat.errors import Unsupported
from kcompat.load import Loaded

_THREADS = 8


def find_registers(loaded: Loaded) -> None:
    """Tells the programs; until then they look at nothing.

    Raises Unsupported where it is not the same on the stacks of several threads, or not told at all.
    """
    hook = loaded.attach("rawtp__sys_exit", "sys_exit")
    try:
        threads = [threading.Thread(target=os.getppid) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        hook.close()
    known, other = (loaded.maps["registers"].get(slot.to_bytes(4, "little")) for slot in range(2))
    if not known or not any(known) or not other or any(other):
        raise Unsupported("httpflow is off: nothing tells where on its stack a thread's registers stand")
