"""One collector a machine: a lock that ends with its process, and a socket on which it tells root how it is."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kcompat.errors import KcompatError, Missing, NotAllowed

log = logging.getLogger(__name__)

_PATIENCE_S, _PAUSE_S = 5.0, 1.0
_LARGEST = 1 << 24
_UCRED = struct.Struct("3i")
# Root's: that of the service, and of every collector that was not told otherwise.
SYSTEM = Path("/run/kcompat")


class NotRunning(Missing):
    """No collector is where it was looked for."""


def run_dir() -> Path:
    """Where the lock and the socket are: $KCOMPAT_RUN, else /run/kcompat for root, else among the user's own."""
    if chosen := os.environ.get("KCOMPAT_RUN"):
        return Path(chosen)
    if os.geteuid() == 0:
        return SYSTEM
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/kcompat-{os.geteuid()}") / "kcompat"


def ask_any() -> dict[str, Any]:
    """What our own collector says, else root's. As `ask`; NotRunning tells of ours."""
    try:
        return ask(run_dir())
    except NotRunning:
        if os.environ.get("KCOMPAT_RUN") or run_dir() == SYSTEM:
            raise
        with suppress(NotRunning):
            return ask(SYSTEM)
        raise


class Lock:
    """Held as long as the process lives, whatever ends it: the kernel lets go of it."""

    def __init__(self, directory: Path) -> None:
        """Raises KcompatError with the pid of who has it, Missing where it cannot be made."""
        path = directory / "kcompat.pid"
        try:
            # Everybody may see whether a collector is there; lock and socket are its owner's alone.
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise Missing(f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise KcompatError(f"kcompat collect runs already, as process {pid or '(it has just begun)'}: "
                               f"`kcompat status` asks it how it is; KCOMPAT_RUN=DIR lets a second one run beside it"
                               ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        # The file stays: to unlink it would let two have a lock each, on two files.
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
        os.close(self._fd)


class StatusSocket:
    """Answers everybody who connects, and may, with one JSON object; a thread of its own."""

    def __init__(self, directory: Path, tell: Callable[[], dict[str, Any] | None]) -> None:
        """Only for who holds the lock of the directory: an older socket there is dead. Raises Missing."""
        self._path = directory / "kcompat.sock"
        self._tell = tell
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise Missing(f"{self._path}: {error.strerror or error}") from error
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_PATIENCE_S)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                peer, _ = self._socket.accept()
            except OSError as error:
                # No descriptor is free, for one: whoever asks waits for a while, and others may ask later.
                if not self._closing.wait(_PAUSE_S):
                    log.warning("status: %s", error.strerror)
                continue
            with peer:
                try:
                    self._answer(peer)
                except OSError:
                    continue  # who asked has left
                except Exception:
                    log.exception("status")

    def _answer(self, peer: socket.socket) -> None:
        peer.settimeout(_PATIENCE_S)
        uid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
        if uid in (0, os.geteuid()):
            peer.sendall(json.dumps(self._tell() or {}).encode())


def ask(directory: Path) -> dict[str, Any]:
    """What the collector there says. Raises NotRunning where none does, NotAllowed where it is not ours to ask."""
    path = directory / "kcompat.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_PATIENCE_S)
        try:
            client.connect(str(path))
            said = b""
            while len(said) < _LARGEST and (part := client.recv(1 << 16)):
                said += part
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f"no kcompat collect runs here ({path})") from None
        except PermissionError:
            raise NotAllowed(f"{path}: only root may ask: run it with sudo") from None
        except OSError as error:
            raise KcompatError(f"{path}: {error.strerror or error}") from error
    try:
        told = json.loads(said)
    except ValueError:
        raise KcompatError(f"{path}: no answer") from None
    if not isinstance(told, dict) or "pid" not in told:
        raise Missing("kcompat collect has only just begun: ask again")
    return told
