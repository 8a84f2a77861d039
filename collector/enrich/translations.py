"""Where a connection really goes: the destinations that connection trackers translate, of every network namespace."""

from __future__ import annotations

import errno
import logging
import select
import socket
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from collector.ctnetlink import Tracker, Translation, is_loaded
from collector.namespaces import ONLY, doors, visit
from collector.packed_flows import Target
from collector.status import NatStatus

log = logging.getLogger(__name__)

_BOUND = 1 << 17
_MAX_NAMESPACES = 512
_RESCAN_S, _RESCAN_SHARE, _POLL_S = 1.0, 0.01, 0.2
# So often one who asks of an unknown namespace makes us look for new ones at once.
_HEAR_NEW_S = 0.2
# A connection may be told of after the tracker forgot it: at the flush behind its end, at most the longest interval.
_REMEMBERED_S = 1900.0
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_OWN = Path("/proc/self/ns/net")

# Called with (netns, address, port) before connections to a translated destination are told of, and for the machine's
# own namespace with 0: what containers send is often translated there, on its way out.
Mark = Callable[[int, bytes, int], None]
# netns, protocol, source and its port, destination and its port.
_Key = tuple[int, int, bytes, int, bytes, int]


class Book:
    """Translations by the connection as its socket sees it. Bounded: the oldest goes first, and is counted."""

    def __init__(self, bound: int = _BOUND) -> None:
        self.evicted = 0
        self._bound = bound
        self._targets: OrderedDict[_Key, Target] = OrderedDict()
        self._by_source: dict[tuple[int, int, bytes, bytes, int], Counter[Target]] = {}
        self._ended: deque[tuple[float, _Key, Target]] = deque()

    def __len__(self) -> int:
        return len(self._targets)

    def add(self, netns: int, one: Translation) -> None:
        key = (netns, *one[:5])
        self._drop(key)
        target = self._targets[key] = one[5:]
        self._by_source.setdefault(_source(key), Counter())[target] += 1
        if len(self._targets) > self._bound:
            self._drop(next(iter(self._targets)))
            self.evicted += 1

    def end(self, netns: int, one: Translation, now_s: float) -> None:
        self._ended.append((now_s, (netns, *one[:5]), one[5:]))
        while self._ended and (self._ended[0][0] + _REMEMBERED_S < now_s or len(self._ended) > self._bound):
            _, key, target = self._ended.popleft()
            if self._targets.get(key) == target:
                self._drop(key)

    def find(self, netns: int, protocol: int, local: bytes, local_port: int, remote: bytes, remote_port: int, *,
             any_port: bool = False) -> Target | None:
        """`any_port`: of connections merged, whose own ports are not known; only where all went the same way."""
        found = self._targets.get((netns, protocol, local, local_port, remote, remote_port))
        if found is None and any_port:
            targets = self._by_source.get((netns, protocol, local, remote, remote_port), ())
            found = next(iter(targets)) if len(targets) == 1 else None
        return found

    def _drop(self, key: _Key) -> None:
        target = self._targets.pop(key, None)
        if target is None:
            return
        targets = self._by_source[_source(key)]
        targets[target] -= 1
        if not targets[target]:
            del targets[target]
        if not targets:
            del self._by_source[_source(key)]


def _source(key: _Key) -> tuple[int, int, bytes, bytes, int]:
    netns, protocol, source, _, destination, destination_port = key
    return netns, protocol, source, destination, destination_port


class Translations:
    """Keeps a book by listening to every namespace's tracker, in a thread of its own.

    """

    def __init__(self) -> None:
        self.losses = {"nat events": 0, "nat entries": 0}
        self._marks: list[Mark] = []
        self._book = Book()
        self._marked: set[tuple[int, bytes, int]] = set()
        self._trackers: dict[int, Tracker] = {}
        self._refused: set[int] = set()
        self._own = _OWN.stat().st_ino if _OWN.exists() else ONLY
        self._hear_new_at_s = 0.0
        self._poll = select.epoll()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._rescan()
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
        """Learns all that is known to the kernel by now."""
        with self._lock:
            self._rescan()
            self._drain()
            for netns, tracker in self._trackers.items():
                if not tracker.tells:
                    self._dump(netns, tracker)
            self.losses["nat entries"] = self._book.evicted

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
                self._hear(netns)
            found = self._book.find(netns, protocol, local, local_port, remote, remote_port, any_port=any_port)
            if found is None and netns != self._own:
                found = self._book.find(self._own, protocol, local, local_port, remote, remote_port,
                                        any_port=any_port)
        return found

    def status(self) -> NatStatus:
        with self._lock:
            return NatStatus(is_loaded(), len(self._trackers), len(self._refused), len(self._marked), len(self._book),
                             dict(self.losses))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for tracker in self._trackers.values():
            tracker.close()
        self._trackers.clear()
        self._poll.close()

    def _run(self) -> None:
        rescan_at_s = 0.0
        while not self._stop.wait(0 if self._poll.poll(_POLL_S) else _POLL_S / 4):
            try:
                with self._lock:
                    if time.monotonic() >= rescan_at_s:
                        begun_s = time.thread_time()
                        self._rescan()
                        took_s = time.thread_time() - begun_s
                        rescan_at_s = time.monotonic() + max(_RESCAN_S, took_s / _RESCAN_SHARE)
                    self._drain()
            except Exception:
                log.exception("translated destinations: trying again")
                self._stop.wait(_RESCAN_S)

    def _rescan(self) -> None:
        """Listens to namespaces that are new; lets go of those nobody is in: a socket would keep them alive."""
        there = doors() if is_loaded() else {}
        for netns in self._trackers.keys() - there.keys():
            self._listen(netns)
            self._poll.unregister(self._trackers[netns].fileno())
            self._trackers.pop(netns).close()
        self._refused &= there.keys()
        for netns in there.keys() - self._trackers.keys() - self._refused:
            if len(self._trackers) >= _MAX_NAMESPACES:
                self._refuse(netns, f"{_MAX_NAMESPACES} are listened to already")
                continue
            try:
                tracker = visit(there[netns], Tracker)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._refuse(netns, str(error.strerror))
                continue
            self._trackers[netns] = tracker
            self._poll.register(tracker.fileno(), select.EPOLLIN)
            self._dump(netns, tracker)

    def _refuse(self, netns: int, reason: str) -> None:
        self._refused.add(netns)
        log.warning("translated destinations of network namespace %d stay unknown: %s", netns, reason)

    def _hear(self, netns: int) -> None:
        """What trackers say that may know of connections there; a namespace may be younger than the last look."""
        if netns not in self._trackers and netns not in self._refused and time.monotonic() >= self._hear_new_at_s:
            self._hear_new_at_s = time.monotonic() + _HEAR_NEW_S
            self._rescan()
        for one in {netns, self._own} & self._trackers.keys():
            self._listen(one)

    def _drain(self) -> None:
        for netns in self._trackers:
            self._listen(netns)

    def _listen(self, netns: int) -> None:
        tracker = self._trackers[netns]
        now_s = time.monotonic()
        while True:
            try:
                for ended, one in tracker.events():
                    if ended:
                        self._book.end(netns, one, now_s)
                    else:
                        self._add(netns, one)
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.losses["nat events"] += 1
                self._dump(netns, tracker)

    def _dump(self, netns: int, tracker: Tracker) -> None:
        with suppress(TimeoutError):
            for one in tracker.dump():
                self._add(netns, one)

    def _add(self, netns: int, one: Translation) -> None:
        destination = (0 if netns == self._own else netns, one.destination, one.destination_port)
        if destination not in self._marked and len(self._marked) < _BOUND:
            self._marked.add(destination)
            for mark in self._marks:
                mark(*destination)
        self._book.add(netns, one)


class Lender:
    """One `Translations` for all who want it, from the first who borrows it to the last who gives it back."""

    def __init__(self) -> None:
        self._lent: Translations | None = None
        self._borrowers = 0

    def borrow(self) -> Translations:
        if self._lent is None:
            self._lent = Translations()
        self._borrowers += 1
        return self._lent

    def give_back(self) -> None:
        self._borrowers -= 1
        if not self._borrowers and self._lent:
            self._lent.close()
            self._lent = None

    def status(self) -> NatStatus | None:
        return self._lent.status() if self._lent else None
