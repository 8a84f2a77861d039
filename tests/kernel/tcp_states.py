"""Waits for TCP connections of this thread's network namespace to get where a test wants them."""

import time
from contextlib import suppress
from pathlib import Path

# FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING: include/net/tcp_states.h, as /proc/net/tcp writes them.
CLOSING = {"04", "05", "08", "09", "0B"}


def wait_for(condition, patience_s=20):
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def states():
    """The state of each TCP socket of this namespace."""
    found = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            found += [line.split()[3] for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]]
    return found


def all_closed():
    """No connection is left that may still exchange a FIN (TIME_WAIT, 06, is no socket any more)."""
    wait_for(lambda: not set(states()) - {"06", "0A"})


def settle():
    """Lets the last packets of a close arrive: they travel in software interrupts."""
    time.sleep(0.05)
    with suppress(TimeoutError):  # what is half closed stays so
        wait_for(lambda: not set(states()) & CLOSING, patience_s=0.3)
