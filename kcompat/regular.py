"""Opens what a user has named as a file: a FIFO would wait for a writer who never comes, and a device never ends."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from kcompat.errors import BadInput, Missing

FAULT = "not a regular file"


def is_regular(mode: int) -> bool:
    return stat.S_ISREG(mode)


def open_regular(path: Path) -> FileIO:
    """For reading, unbuffered. Raises OSError, also for whatever is there and no regular file; never waits."""
    # O_NONBLOCK is for FIFOs alone: of a regular file it changes nothing.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not is_regular(mode):
            raise OSError(errno.EINVAL, FAULT, os.fspath(path))
        return FileIO(handle)
    except BaseException:
        os.close(handle)
        raise


@contextmanager
def faults_of(path: Path) -> Iterator[None]:
    """What goes wrong with opening or reading it, in words: Missing where it is not to be had, else BadInput."""
    try:
        yield
    except FileNotFoundError as error:
        raise Missing(f"{path} does not exist") from error
    except PermissionError as error:
        raise Missing(f"{path} is not readable by this user; try as root") from error
    except OSError as error:
        raise BadInput(path, error.strerror or str(error)) from error
