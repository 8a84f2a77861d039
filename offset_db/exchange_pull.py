"""Fetches a database somebody else built: resumed where it stopped, used only if its checksum is the one expected."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from kcompat.errors import BadInput, KcompatError, Missing, Usage
from kcompat.regular import open_regular
from offset_db.connection import Busy, Corrupt, connect_writable, told
from offset_db.db import Database

_TIMEOUT_S = 30.0
_CHUNK = 1 << 20
# A database of 5,000 kernels has 40 MB; a server that never stops sending must not fill the disk.
_MAX_SIZE = 4 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")


def checksum(given: str | None, sums: Path | None, url: str) -> str:
    """The SHA-256 to expect: as given, or from the line of `url`'s file name in a file as sha256sum(1) writes it.

    It must come another way than the file: one that lies beside the file says only that the transfer went well.
    """
    if given and sums:
        raise Usage("give the checksum or a SHA256SUMS file, not both")
    if given:
        if not _SHA256.fullmatch(given.lower()):
            raise Usage(f"{given!r} is not a SHA-256: 64 hexadecimal digits")
        return given.lower()
    if sums is None:
        raise Usage("a checksum is required: --sha256 HEX, or --sums FILE")
    name = Path(unquote(urlsplit(url).path)).name
    for line in _read(sums).splitlines():
        digest, _, file = line.partition(" ")
        if Path(file.lstrip(" *")).name == name and _SHA256.fullmatch(digest.lower()):
            return digest.lower()
    raise BadInput(sums, f"no SHA-256 of {name}")


def fetch(url: str, sha256: str, beside: Path, progress: Callable[[int], None] | None = None) -> Path:
    """The file behind `url`, whole and proved, beside the path it is meant for; the caller moves or removes it.

    What was fetched before an interruption is continued. Raises KcompatError; a wrong file is removed.
    """
    part = beside.with_name(f".{beside.name}.{sha256[:16]}.part")
    scheme, source = urlsplit(url).scheme, Path(unquote(urlsplit(url).path))
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        if scheme == "https":
            _download(url, part, progress)
        elif scheme in ("file", ""):
            _write(url, part, _chunks_of(source), 0, progress)
        else:
            raise Usage(f"{url}: {scheme} is not supported, only https and file")
        if (found := _digest(part)) != sha256:
            part.unlink()
            raise KcompatError(f"{url}: its SHA-256 is {found}, not {sha256}; nothing was changed")
    except httpx.HTTPError as error:
        raise KcompatError(f"{url}: {error or type(error).__name__}; run it again to go on from here") from error
    except OSError as error:
        raise Missing(f"{error.filename or part}: {error.strerror}") from error
    return part


def replace(path: Path, fetched: Path) -> None:
    """Put the fetched database in the place of `path`, at once. Raises KcompatError; then nothing changes.

    BadInput where what was fetched is no database, or what is there is none of ours, or a newer kcompat's.
    """
    with Database.open(fetched, read_only=True):
        pass
    try:
        if path.exists():
            # Into the file, so that no -wal is left that belongs to another file than the one it lies beside.
            with suppress(Busy, Corrupt), told(path):
                connection = connect_writable(path)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.close()
        _drop_log(path)
        # Readable by its owner only, as every memory: see files.ensure_exists.
        fetched.chmod(0o600)
        fetched.replace(path)
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}; name a file you may write") from error


def discard(fetched: Path) -> None:
    """Leaves nothing of it, nor of having looked into it: SQLite's log and index lie beside what was opened."""
    fetched.unlink(missing_ok=True)
    _drop_log(fetched)


def _drop_log(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _download(url: str, part: Path, progress: Callable[[int], None] | None) -> None:
    done = part.stat().st_size if part.exists() else 0
    # Packed on the way, the rest of the file would not be what a Range of it is.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with (httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True) as client,
          client.stream("GET", url, headers=headers) as answer):
        if answer.url.scheme != "https":
            raise KcompatError(f"{url}: leads to {answer.url}, which is not https")
        if answer.status_code == 416:
            # All of it is here, or the file has changed: the checksum tells.
            return
        answer.raise_for_status()
        resumed = done if answer.status_code == 206 else 0
        # As it comes: what waits here for a chunk to be full is lost with the line.
        _write(url, part, answer.iter_bytes(), resumed, progress)


def _write(url: str, part: Path, chunks: Iterator[bytes], done: int, progress: Callable[[int], None] | None) -> None:
    with part.open("ab" if done else "wb") as file:
        for chunk in chunks:
            done += len(chunk)
            if done > _MAX_SIZE:
                # Not to be gone on from.
                part.unlink()
                raise KcompatError(f"{url}: over {_MAX_SIZE >> 30} GiB, which no database is; nothing was changed")
            file.write(chunk)
            if progress:
                progress(done)
        os.fsync(file.fileno())


def _chunks_of(path: Path) -> Iterator[bytes]:
    try:
        file = open_regular(path)
    except OSError as error:
        raise BadInput(path, error.strerror or str(error)) from error
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, getattr(error, "strerror", None) or "not text") from error
