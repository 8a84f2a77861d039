"""In which directory what waits for an output stands, and what becomes of those that are no output's any more."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from collector.sinks.options import Network
from offset_db.files import default_path

logger = logging.getLogger(__name__)

# How it is sent and who is trusted, not where to; what a file or a variable holds is not asked.
_NOT_WHERE = {one.name for one in fields(Network)} | {"ca_file", "password_file", "password_env", "properties"}
_SECRET = re.compile(r"token|secret|pass|pwd|key|auth|sig|^p$", re.IGNORECASE)


def place(kind: str, options: Network) -> Path:
    """The same after a change of a token's value, a password or a time-out: so what waits is found again.

    Another for whatever else tells two outputs apart: what waits for one tenant never goes out with another's token.
    """
    asked = {one.name: value for one in fields(options)
             if one.name not in _NOT_WHERE and (value := getattr(options, one.name)) and value != one.default}
    told = [kind, _address(options.url), asked]
    return _home(options) / _named(kind, json.dumps(told, sort_keys=True, default=str))


class Spooled(NamedTuple):
    """An output that has a place: which one of all it is, and what says so."""

    at: int
    kind: str
    options: Network
    place: Path


def shared(outputs: Iterable[Spooled]) -> Iterator[tuple[int, str]]:
    """Which have a place that is another's already, and why they may not: they would send each other's points."""
    seen: set[Path] = set()
    for one in outputs:
        if one.place in seen:
            yield one.at, (f"sink {one.options.name!r}: an output before it has the same spool: leave one out, or, "
                           "if their tokens differ, name them by token_file, or give one a spool_dir of its own")
        seen.add(one.place)


def settle(outputs: Iterable[Spooled]) -> None:
    """Before they are opened: they get what the first version named by the server alone, and strays are told."""
    places: set[Path] = set()
    owners: dict[Path, set[Path]] = defaultdict(set)
    for one in outputs:
        places.add(one.place)
        owners[one.place.parent / _named(one.kind, one.options.name)].add(one.place)
    try:
        for old, new in owners.items():
            # With one output at that server it is certain whose it is.
            if len(new) == 1 and old.is_dir():
                _move(old, min(new))
        for path in sorted(_waiting({one.parent for one in places}) - places):
            ways = " or: ".join(_given(path, one) for one in sorted(owners.get(path, ())))
            logger.warning("%s: what waits there is for no output that there is now%s", path,
                           f"; while kcompat is stopped it can be given to one of them: {ways}" if ways else "")
    except OSError as error:
        logger.warning("%s: %s", error.filename, error.strerror)


def _named(kind: str, told: str) -> str:
    return f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _address(url: str) -> str:
    """With the user and the query, but neither password nor token."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = [one for one in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET.search(one[0])]
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}?{urlencode(query)}"


def _home(options: Network) -> Path:
    """Where spools are, each in a directory of its own."""
    if options.spool_dir:
        return options.spool_dir
    return Path(given) if (given := os.environ.get("KCOMPAT_SPOOL")) else default_path().with_name("spool")


def _move(old: Path, new: Path) -> None:
    """Also over a place in which nothing waits: every output makes its own when it is opened."""
    new.mkdir(exist_ok=True, mode=0o700)
    with _held(old) as mine, _held(new) as free:
        if mine and free and not _waits(new):
            for file in (*new.glob("*.chunks"), new / "cursor", new / "lock"):
                file.unlink(missing_ok=True)
            old.rename(new)


def _given(old: Path, new: Path) -> str:
    """The command for it. What is there already is put aside, and told if anything waits in it."""
    before, after = shlex.quote(str(old)), shlex.quote(str(new))
    return f"mv -T {after} {after}.aside; mv -T {before} {after}"


def _waits(path: Path) -> bool:
    return any(file.stat().st_size for file in path.glob("*.chunks"))


def _waiting(homes: Iterable[Path]) -> set[Path]:
    """Spools in which something waits and nobody, another collector for one, is at work."""
    found = set()
    for path in (path for home in homes if home.is_dir() for path in home.iterdir()):
        if _waits(path):
            with _held(path) as mine:
                found |= {path} if mine else set()
    return found


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether nobody else has it, and has not until the end."""
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)
