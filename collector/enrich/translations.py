"""Where a connection really goes: the destinations that connection trackers translate, of every network namespace."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from collector.ctnetlink import loaded_as
from collector.datasets.hooks import BACKENDS, Backend
from collector.enrich.translation_book import BOUND, Book
from collector.namespaces import ONLY
from collector.nf_conn import NfConn, why_not
from collector.packed_flows import Target
from collector.status import NatStatus
from collector.trackers import Trackers
from collector.translation import Source, Translation
from kcompat.errors import KcompatError, UnknownField
from kcompat.offsets import Offsets

log = logging.getLogger(__name__)

_RESCAN_S, _RESCAN_SHARE, _POLL_S = 1.0, 0.01, 0.2
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_OWN = Path("/proc/self/ns/net")
_NOT_LOADED = "no connection tracker is loaded"

# Called with (netns, address, port) before connections to a translated destination are told of, and for the machine's
# own namespace with 0: what containers send is often translated there, on its way out.
Mark = Callable[[int, bytes, int], None]


@dataclass(frozen=True, slots=True)
class Means:
    """What programs at the tracker's functions are made with."""

    offsets: Offsets
    version_code: int
    backends: Sequence[Backend] = BACKENDS


class Translations:
    """Keeps a book of what a source tells, in a thread of its own: programs in the tracker, else ctnetlink.

    Programs can be where the tracker is loaded, which may be later than we begin, and end with it.
    """

    def __init__(self, means: Means) -> None:
        self.losses = {"nat events": 0, "nat entries": 0}
        self._means = means
        self._marks: list[Mark] = []
        self._book = Book()
        self._marked: set[tuple[int, bytes, int]] = set()
        self._own = _OWN.stat().st_ino if _OWN.exists() else ONLY
        self._lost_before = 0
        self._why, self.lacks_offsets = _NOT_LOADED, False
        self._tried: int | None = None
        self._asked_of = loaded_as()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._source: Source = self._trackers()
        try:
            self._choose()
            self._source.rescan()
        except BaseException:
            self._source.close()
            raise
        self._thread = threading.Thread(target=self._run, name="nat", daemon=True)
        self._thread.start()

    def call(self, mark: Mark) -> None:
        """From now on, and at once for what is known already, until it is called no more."""
        with self._lock:
            self._marks.append(mark)
            for destination in self._marked:
                mark(*destination)

    def call_no_more(self, mark: Mark) -> None:
        with self._lock, suppress(ValueError):
            self._marks.remove(mark)

    @property
    def has_any(self) -> bool:
        """Whether any destination was seen to be translated: most machines have none."""
        return bool(self._marked)

    def settle(self) -> None:
        """Learns all that is known to the kernel by now; where it cannot be asked, what was known before stands."""
        with self._lock:
            try:
                self._source.settle()
            except OSError as error:
                log.warning("translated destinations are those known before: %s", error)
            self._count_losses()

    def find(self, netns: int, transport: str, local: bytes, local_port: int, remote: bytes, remote_port: int,
             *, any_port: bool = False, fresh: bool = False) -> Target | None:
        """The address, 16 bytes, and the port that a connection to `remote` was sent to; None for `remote` itself.

        `fresh`: also if the kernel has said it only now. What was settled is found without.
        """
        if not self._marked and not fresh:
            return None
        protocol = _PROTOCOLS[transport]
        with self._lock:
            if fresh:
                self._source.hear(netns, self._own)
            found = self._book.find(netns, protocol, local, local_port, remote, remote_port, any_port=any_port)
            if found is None and netns != self._own:
                found = self._book.find(self._own, protocol, local, local_port, remote, remote_port,
                                        any_port=any_port)
        return found

    def adopt(self, means: Means) -> None:
        """Programs are tried once more, with these, where there are none yet for want of offsets."""
        with self._lock:
            self.lacks_offsets, self._asked_of = False, self._tried
            self._means, self._tried = means, None

    def status(self) -> NatStatus:
        with self._lock:
            source = self._source
            return NatStatus(loaded_as() is not None, source.namespaces, source.refused, len(self._marked),
                             len(self._book), dict(self.losses), source.how, self._why, tuple(source.hooks))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._source.close()

    def _run(self) -> None:
        rescan_at_s = 0.0
        while not self._stop.is_set():
            try:
                self._source.wait(_POLL_S)
                due = time.monotonic() >= rescan_at_s
                if due:
                    self._choose()
                with self._lock:
                    if due:
                        begun_s = time.thread_time()
                        self._source.rescan()
                        took_s = time.thread_time() - begun_s
                        rescan_at_s = time.monotonic() + max(_RESCAN_S, took_s / _RESCAN_SHARE)
                    self._source.drain()
                    self._count_losses()
            except Exception:
                log.exception("translated destinations: trying again")
                self._stop.wait(_RESCAN_S)

    def _trackers(self) -> Trackers:
        return Trackers(self._told, self._book.forget)

    def _choose(self) -> None:
        """Programs, once for each time the tracker is loaded; the lock is free while they are compiled and attached."""
        loaded = loaded_as()
        if loaded == self._tried:
            return
        self._tried = loaded
        if loaded is None:
            self._take(self._trackers(), _NOT_LOADED)
            return
        means = self._means
        try:
            made: Source = NfConn(means.offsets, means.version_code, means.backends, self._told)
        except KcompatError as error:
            made, why = self._trackers(), why_not(error)
            # Asked for anew where the tracker came after those that are known: once.
            self.lacks_offsets = isinstance(error, UnknownField) and loaded != self._asked_of
        except OSError as error:
            made, why = self._trackers(), str(error)
        else:
            why = ""
        log.info("translated destinations come from %s%s", made.how,
                 f" (no programs in the tracker: {why})" if why else "")
        self._take(made, why)

    def _take(self, source: Source, why: str) -> None:
        with self._lock:
            before, self._source, self._why = self._source, source, why
            self._lost_before += before.lost
            before.close()

    def _count_losses(self) -> None:
        self.losses["nat events"] = self._lost_before + self._source.lost
        self.losses["nat entries"] = self._book.evicted

    def _told(self, netns: int, ended: bool, one: Translation) -> None:
        if ended:
            self._book.end(netns, one, time.monotonic())
            return
        destination = (0 if netns == self._own else netns, one.destination, one.destination_port)
        if destination not in self._marked and len(self._marked) < BOUND:
            self._marked.add(destination)
            for mark in self._marks:
                mark(*destination)
        self._book.add(netns, one)


class Lender:
    """One `Translations` for all who want it, from the first who borrows it to the last who gives it back."""

    def __init__(self) -> None:
        self._lent: Translations | None = None
        self._borrowers = 0

    def borrow(self, means: Means) -> Translations:
        if self._lent is None:
            self._lent = Translations(means)
        self._borrowers += 1
        return self._lent

    def give_back(self) -> None:
        self._borrowers -= 1
        if not self._borrowers and self._lent:
            self._lent.close()
            self._lent = None

    @property
    def lacks_offsets(self) -> bool:
        """Whether programs would be possible if more offsets were known: the tracker is there now."""
        return self._lent is not None and self._lent.lacks_offsets

    def adopt(self, means: Means) -> None:
        if self._lent:
            self._lent.adopt(means)

    def status(self) -> NatStatus | None:
        return self._lent.status() if self._lent else None
