"""What a process that runs for months tells its allocator: few arenas, large blocks apart, free pages given back."""

from __future__ import annotations

import ctypes

# <malloc.h> of glibc; other libraries have neither these functions nor their trouble.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_ARENAS, _LARGE = 2, 1 << 17


def few_arenas() -> None:
    """To be called before there are threads: each may else keep an arena of its own, with what it once needed.

    Large blocks stay pages of their own: else the first one freed makes all up to its size lie among the small ones.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Returns pages that nothing is in to the kernel; some milliseconds."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
