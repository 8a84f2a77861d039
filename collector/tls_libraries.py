"""Programs on every TLS library in use: those installed, those that processes have mapped, those inside of programs.

A library is a file, whatever it is called and in whichever container: a hook in it holds for all who map it, now or
later. What has to be found in time is only a file not seen before: by the programs that begin, and by looking again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

from collector.exec_events import ExecEvents
from collector.mapped_files import Edition, edition, hooked, leads_to, mapped, mapped_pages, opened, others_of, pattern
from collector.proc_files import PROC, exists, pids
from collector.threads import forget_ended
from collector.tls_hooks import PROGRAMS, hooks_in
from kcompat.attach import Attachment
from kcompat.elf import Elf
from kcompat.errors import KcompatError
from kcompat.foreign_file import ForeignFile
from kcompat.load import Loaded
from kcompat.open_files import readable
from kcompat.privileges import explained

log = logging.getLogger(__name__)

_NAMES = pattern(r"lib(?:ssl|gnutls)[^/\n]*\.so[^/\n]*")
_INSTALLED = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/local/lib64")
_POLL_S = 0.2
# Looking for files takes a look at every process: never more than this share of a processor.
_SCAN_SHARE = 0.005
_SHORTEST_SCAN_S = 0.5
# Half of a scan's time would go into the directories of the system, which hardly ever change.
_INSTALLED_S = 10.0
# A program maps its libraries soon after it has begun, a module of it may bring one later.
_LOOKS_S = (0.01, 0.1, 1.0)
_MAX_LIBRARIES, _MAX_FILES, _MAX_YOUNG = 256, 4096, 4096


class TlsLibraries:
    """What is hooked, and a thread that keeps it up to date. Everything there is when it is made is hooked then."""

    def __init__(self, loaded: Loaded, proc: Path = PROC) -> None:
        """Raises KcompatError where the programs cannot be loaded."""
        self._loaded = loaded
        self._proc = proc
        # Every file that was looked at, as long as it is used; nothing is attached to one that is no TLS library.
        self._files: dict[Edition, list[Attachment]] = {}
        # What overlays show, and which of these files it is.
        self._shown: dict[Edition, Edition] = {}
        # When to look at a process that has just begun.
        self._young: dict[int, list[float]] = {}
        self._full_said: set[str] = set()
        self._installed: set[Edition] = set()
        self._installed_at_s = 0.0
        # Of each process how much it had mapped at the last scan, and its files that matter.
        self._looked: dict[int, tuple[bytes, set[Edition]]] = {}
        # Whoever has mapped one of these is looked at again.
        self._overwritten: set[Edition] = set()
        # Of the last scan: what changing hooks took of a processor, which happens once a file, not once a look.
        self._hooking_s = 0.0
        self._stop = threading.Event()
        self._events: ExecEvents | None = None
        for program in PROGRAMS:
            loaded.load(program)
        try:
            self._events = ExecEvents()
        except OSError as error:
            log.info("TLS libraries are found by looking for them alone: no exec events (%s)", error.strerror)
        try:
            self._scan()
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name="httpflow tls", daemon=True)
        self._thread.start()

    def has(self, file: Edition) -> bool:
        """Whether that file is hooked."""
        return bool(self._files.get(self._shown.get(file, file)))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._release()

    def _release(self) -> None:
        for attached in self._files.values():
            _close(attached)
        if self._events:
            self._events.close()

    def _run(self) -> None:
        scan_at_s = 0.0
        while not self._stop.is_set():
            try:
                self._wait()
                self._look_at_young()
                if time.monotonic() >= scan_at_s:
                    begun_s, self._hooking_s = time.thread_time(), 0.0
                    self._scan()
                    self._sweep()
                    looked_s = time.thread_time() - begun_s - self._hooking_s
                    scan_at_s = time.monotonic() + max(_SHORTEST_SCAN_S, looked_s / _SCAN_SHARE)
            except Exception:
                log.exception("TLS libraries are looked for all the same")

    def _wait(self) -> None:
        now_s = time.monotonic()
        rest_s = min((looks[0] for looks in self._young.values()), default=now_s + _POLL_S) - now_s
        rest_s = min(max(rest_s, 0.0), _POLL_S)
        if self._events is None:
            self._stop.wait(rest_s)
        elif readable(self._events, rest_s):
            now_s = time.monotonic()
            for pid in self._events.pids():
                if len(self._young) < _MAX_YOUNG:
                    self._young[pid] = [now_s + after_s for after_s in _LOOKS_S]

    def _look_at_young(self) -> None:
        now_s = time.monotonic()
        for pid, looks in list(self._young.items()):
            if looks[0] > now_s:
                continue
            while looks and looks[0] <= now_s:
                looks.pop(0)
            if not looks:
                del self._young[pid]
            self._look_at(pid)
            # It may have as much mapped as the program before it had.
            self._looked.pop(pid, None)

    def _scan(self) -> None:
        """Hooks files that are new, lets go of those nobody uses any more. Who mapped nothing since maps no library."""
        if time.monotonic() >= self._installed_at_s:
            self._installed = self._met(_installed())
            self._installed_at_s = time.monotonic() + _INSTALLED_S
        looked, used = {}, set(self._installed)
        overwritten, self._overwritten = self._overwritten, set()
        for pid in pids(self._proc):
            with suppress(OSError):  # it has ended
                pages = mapped_pages(pid, self._proc)
                before = self._looked.get(pid)
                is_known = before and before[0] == pages and before[1].isdisjoint(overwritten)
                looked[pid] = pages, before[1] if before and is_known else self._look_at(pid)
                used |= looked[pid][1]
        self._looked = looked
        begun_s = time.thread_time()
        for file in self._files.keys() - used:
            _close(self._files.pop(file))
        self._shown = {shown: file for shown, file in self._shown.items() if file in used}
        self._hooking_s += time.thread_time() - begun_s

    def _sweep(self) -> None:
        """Forgets the sessions of processes that ended without a word, and the calls that threads ended in."""
        table = self._loaded.maps["tls_sockets"]
        gone: dict[int, bool] = {}
        for key, _ in table.items():
            pid = int.from_bytes(key[:8], "little")
            if pid not in gone:
                gone[pid] = not exists(pid, "", self._proc)
            if gone[pid]:
                table.delete(key)
        forget_ended(self._loaded.maps["tls_calls"], self._proc, when_over=0)

    def _look_at(self, pid: int) -> set[Edition]:
        """The files of that process that matter: its program, and what looks like a TLS library."""
        return self._met((f"{self._proc}/{pid}/exe",)) | self._met(mapped(pid, _NAMES, self._proc))

    def _met(self, paths: Iterable[str]) -> set[Edition]:
        """What is there of all these: a link may lead nowhere, or where we may not look, and costs no other."""
        met = set()
        with suppress(OSError):  # the process has ended
            for path in paths:
                with suppress(OSError):
                    met.add(self._meet(path))
        return met

    def _meet(self, path: str) -> Edition:
        """What is there; a file not seen before is hooked. Raises OSError when there is nothing any more."""
        shown = edition(path)
        file = self._shown.get(shown, shown)
        if file not in self._files and not self._is_full(len(self._files), _MAX_FILES, "files are looked into", path):
            begun_s = time.thread_time()
            try:
                file = self._take(path, shown)
            finally:
                self._hooking_s += time.thread_time() - begun_s
        return file

    def _take(self, path: str, shown: Edition) -> Edition:
        """Raises FileNotFoundError when the path leads elsewhere by now, as that of a process that has ended."""
        file, attached = shown, list[Attachment]()
        try:
            with ForeignFile(Path(path)) as data:
                file, shown = hooked(data, path), opened(data)
                if file not in self._files:
                    for before in others_of(file, self._files):
                        self._overwritten.add(before)
                        _close(self._files.pop(before))
                    self._hook(data, path, attached)
            if not leads_to(path, shown):
                raise FileNotFoundError(path)
        except Exception as error:
            # Anybody may have made the file: whatever is wrong with it, the others are looked at.
            _close(attached)
            if not leads_to(path, shown):
                raise FileNotFoundError(path) from error
            log.warning("TLS is not seen in %s: %s", path, explained(error),
                        exc_info=not isinstance(error, KcompatError | OSError))
        self._files.setdefault(file, attached)
        self._shown[shown] = file
        return file

    def _hook(self, data: ForeignFile, path: str, attached: list[Attachment]) -> None:
        """Adds to `attached`, nothing where it is no TLS library."""
        hooks = hooks_in(Elf(data, Path(path)))
        number = sum(map(bool, self._files.values()))
        if not hooks or self._is_full(number, _MAX_LIBRARIES, "files have TLS read in them", path):
            return
        for hook in hooks:
            for program in hook.programs:
                attached.append(self._loaded.attach(program, f"{path}:{hook.at:#x}", data.fileno()))
                self._loaded.attachments.remove(attached[-1])
        log.info("TLS is read in %s: %s", path, ", ".join(name for hook in hooks for name in hook.functions))

    def _is_full(self, number: int, bound: int, what: str, path: str) -> bool:
        """Whether there is no room for one more, which is said once."""
        if number >= bound and what not in self._full_said:
            self._full_said.add(what)
            log.warning("%d %s, and no more of them, as %s", bound, what, path)
        return number >= bound


def _installed() -> Iterator[str]:
    """Libraries where systems keep them, used or not: who begins to use one is seen from the first byte on."""
    for directory, depth, name in product(_INSTALLED, ("", "*/"), ("libssl.so*", "libgnutls.so*")):
        yield from map(str, sorted(Path(directory).glob(depth + name)))


def _close(attached: list[Attachment]) -> None:
    while attached:
        attached.pop().close()
