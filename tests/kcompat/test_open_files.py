"""More than 1,024 open files: they may be, and waiting for one of them works."""

import os
import resource
import subprocess
import sys
from contextlib import suppress

from kcompat.open_files import readable

SCRIPT = "import resource; from kcompat.open_files import allow_many; allow_many(); " \
         "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"


def test_as_many_as_there_may_be_are_allowed():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512)))

    assert done.stdout == "512 512\n"


def test_a_descriptor_of_any_number_is_waited_for():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reading, writing = os.pipe()
    high = 2000
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        os.dup2(reading, high)
        assert not readable(high, 0.01)
        os.write(writing, b"x")
        assert readable(high, 10)
        os.read(high, 1)
        os.close(writing)
        assert readable(high, 10)  # the end of it
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in (reading, writing, high):
            with suppress(OSError):
                os.close(fd)
