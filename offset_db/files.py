"""Where the memory file lies, how it is created, and how a damaged one is put out of the way."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kcompat.errors import BadInput, Missing
from kcompat.regular import FAULT, is_regular

log = logging.getLogger(__name__)

Identity = tuple[int, int]
# sqlite.org/fileformat.html
_SQLITE_MAGIC = b"SQLite format 3\0"


def default_path() -> Path:
    """One memory per machine for root, one per user (XDG base directories) for everybody else."""
    if os.geteuid() == 0:
        return Path("/var/lib/kcompat/offsets.db")
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    # The XDG specification says to ignore a relative path.
    return (data_home if data_home.is_absolute() else Path.home() / ".local/share") / "kcompat/offsets.db"


def identity(path: Path) -> Identity | None:
    """Which file lies at `path`: another process may have put a new one there since we opened ours."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def is_writable(path: Path) -> bool:
    """Whether SQLite can write there: the file, and its directory too, for the -wal and -shm beside it."""
    if os.access(path, os.F_OK):
        return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return True  # or not: creating it will tell


def ensure_exists(path: Path) -> None:
    """Create the file, empty, if there is none. Readable by its owner only: windows hold kernel addresses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_EXCL: to open and close a file that is there would drop the locks SQLite holds on it in this process.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}: nothing can be remembered there; "
                      f"run as root or name a file you may write") from error


def check_regular(path: Path) -> None:
    """Refuse a directory or a device: those are never moved aside."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}; run as root or name a file you may use") from error
    if not is_regular(mode):
        raise BadInput(path, FAULT)


def is_sqlite(path: Path) -> bool:
    """Whether the file begins as a database: one that does not is a user's own, named by a slip of the hand.

    Only for a file that SQLite could not read: closing it drops the locks SQLite holds on it in this process.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError:
        return False


def move_aside(path: Path, damaged: Identity | None, fault: str) -> None:
    """Rename the damaged file, with its -wal and -shm, unless another process already has."""
    with _directory_lock(path.parent):
        if damaged is None or identity(path) != damaged:
            return
        aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}.{time.time_ns() % 10**9:09}")
        # The main file goes last: if we die half way, a -wal must not be left beside a fresh file, into which
        # SQLite would replay it.
        for suffix in ("-wal", "-shm", ""):
            part = path.with_name(path.name + suffix)
            try:
                part.rename(aside.with_name(aside.name + suffix))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BadInput(path, f"{fault}; and it cannot be moved aside: {error.strerror}") from error
    log.warning("%s: %s; moved aside to %s, starting afresh", path, fault, aside)


@contextmanager
def _directory_lock(directory: Path) -> Iterator[None]:
    """Held by one process at a time; on the directory itself, so that no lock file is left behind."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
