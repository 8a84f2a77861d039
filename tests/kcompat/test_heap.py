"""What was freed goes back to the kernel, also from beneath something that stays."""

import subprocess
import sys

SCRIPT = """
import ctypes, sys
from kcompat.heap import few_arenas, give_back

def resident_kb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

few_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(4000) for _ in range(20_000)]
for block in blocks:
    ctypes.memset(block, 1, 4000)
kept = libc.malloc(4000)
for block in blocks:
    libc.free(block)
before = resident_kb()
give_back()
print(before - resident_kb() if hasattr(libc, "malloc_trim") else 1 << 20)
"""


def test_pages_that_nothing_is_in_are_given_back():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) > 40_000


LARGE = """
import ctypes
from kcompat.heap import few_arenas

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "free", "fast", "mapped", "mapped_bytes", "rest1",
                                                    "rest2", "used", "unused", "top")]

few_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo2.restype = Mallinfo
libc.free(libc.malloc(16 << 20))
before = libc.mallinfo2().mapped_bytes
libc.malloc(4 << 20)
print(libc.mallinfo2().mapped_bytes - before)
"""


def test_large_blocks_are_apart_also_after_a_larger_one_was_freed():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) >= 4 << 20
