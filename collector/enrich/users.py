"""Login names: what the process's own /etc/passwd calls a user, for containers have users of their own."""

from __future__ import annotations

import os
import pwd
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from collector.mapped_files import FileId, file_id

_LONGEST_FILE = 1 << 20
_PASSWD = Path("/etc/passwd")
# Users may be kept elsewhere too, as in a directory service, which does not tell when one is another's number.
_KEPT_S = 60
_MAX_NAMES = 1024
# A directory service that is down, and a file system of a container, may keep whoever asks waiting without end.
_PATIENCE_S = 0.5
_MAX_UNANSWERED = 16

T = TypeVar("T")
_Edition = tuple[int, ...]


class Users:
    """Answers (user, process, its root) with a name, or the number where there is none or it is not told in time."""

    def __init__(self) -> None:
        self.here = file_id("/")
        """Our own root."""
        # Of this machine's users, and of which edition that is.
        self._names: OrderedDict[int, tuple[str, _Edition]] = OrderedDict()
        self._unanswered: dict[FileId, threading.Thread] = {}

    def name(self, uid: int, pid: int, root: FileId | None) -> str:
        """`root` is that of the process, None when it is not known any more; then only the number is certain."""
        if root is None:
            return str(uid)
        if root == self.here:
            return self._own_name(uid)
        return self._in_time(root, lambda: passwd_name(_read(f"/proc/{pid}/root/etc/passwd"), uid)) or str(uid)

    def _own_name(self, uid: int) -> str:
        """Of this machine, whatever its users are kept in; asked once an edition."""
        edition = _edition()
        if self._names.get(uid, ("", ()))[1] != edition:
            self._in_time(self.here, partial(self._ask, uid, edition))
        return self._names[uid][0] if uid in self._names else str(uid)

    def _ask(self, uid: int, edition: _Edition) -> None:
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            # Also what a directory service says that is down: who had a name has it still.
            name = self._names[uid][0] if uid in self._names else str(uid)
        self._names[uid] = name, edition
        if len(self._names) > _MAX_NAMES:
            self._names.popitem(last=False)

    def _in_time(self, root: FileId, question: Callable[[], T]) -> T | None:
        """Asked in a thread of its own, which is left behind if it takes too long; None then, and until it is back."""
        self._unanswered = {of: thread for of, thread in self._unanswered.items() if thread.is_alive()}
        if root in self._unanswered or len(self._unanswered) >= _MAX_UNANSWERED:
            return None
        answers: list[T] = []
        thread = threading.Thread(target=lambda: answers.append(question()), name="bash users", daemon=True)
        self._unanswered[root] = thread
        thread.start()
        thread.join(_PATIENCE_S)
        return answers[0] if answers else None


def _edition() -> _Edition:
    """Another one when the file of users is another or has changed, and after a while."""
    minute = int(time.monotonic() // _KEPT_S)
    try:
        found = _PASSWD.stat()
    except OSError:
        return (minute,)
    return minute, found.st_ino, found.st_mtime_ns


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
    except OSError:
        return ""
    finally:
        os.close(fd)
