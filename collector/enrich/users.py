"""Login names: what the process's own /etc/passwd calls a user, for containers have users of their own."""

from __future__ import annotations

import os
import pwd
import stat
import time
from functools import lru_cache
from pathlib import Path

from collector.mapped_files import FileId, file_id

_LONGEST_FILE = 1 << 20
_PASSWD = Path("/etc/passwd")
# Users may be kept elsewhere too, as in a directory service, which does not tell when one is another's number.
_KEPT_S = 60


class Users:
    """Answers (user, process, its root) with a name, or the number where there is none."""

    def __init__(self) -> None:
        self.here = file_id("/")
        """Our own root."""

    def name(self, uid: int, pid: int, root: FileId | None) -> str:
        """`root` is that of the process, None when it is not known any more; then only the number is certain."""
        if root is None:
            return str(uid)
        if root == self.here:
            return _own_name(uid, _edition())
        return passwd_name(_read(f"/proc/{pid}/root/etc/passwd"), uid) or str(uid)


def _edition() -> tuple[int, ...]:
    """Another one when the file of users is another or has changed, and after a while."""
    minute = int(time.monotonic() // _KEPT_S)
    try:
        found = _PASSWD.stat()
    except OSError:
        return (minute,)
    return minute, found.st_ino, found.st_mtime_ns


@lru_cache(maxsize=1024)
def _own_name(uid: int, edition: tuple[int, ...]) -> str:
    """Of this machine, whatever its users are kept in; asked once an edition."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def passwd_name(text: str, uid: int) -> str | None:
    """The first name of a user in the lines of passwd(5)."""
    for line in text.splitlines():
        name, *rest = line.split(":")
        if name and len(rest) > 1 and rest[1] == str(uid):
            return name
    return None


def _read(path: str) -> str:
    """A container's file, which may be anything: no links out of it, no waiting on a pipe, not without end."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _LONGEST_FILE).decode(errors="replace") if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    finally:
        os.close(fd)
