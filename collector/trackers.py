"""Translated destinations by ctnetlink: a conversation with the connection tracker of each network namespace."""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path

from collector.ctnetlink import Asker, Tracker, is_loaded
from collector.namespaces import Refused, doors, visit
from collector.translation import Told
from kcompat.hook_status import HookStatus

log = logging.getLogger(__name__)

_MAX_NAMESPACES = 512
# So often one who asks of an unknown namespace makes us look for new ones at once.
_HEAR_NEW_S = 0.2
# So often a tracker that did not say all it knows, and may take seconds not to, is asked again.
_CATCH_UP_S = 60.0


class Trackers:
    """Listens to every namespace's tracker, from the look that finds it to the one that misses it."""

    how = "ctnetlink"
    hooks: tuple[HookStatus, ...] = ()

    def __init__(self, told: Told, forget: Callable[[Collection[int]], None]) -> None:
        """`forget` is called with namespaces whose numbers are others' by now."""
        self.lost = 0
        self._told, self._forget = told, forget
        self._gone: set[int] = set()
        self._trackers: dict[int, Tracker] = {}
        self._doors: dict[int, Path] = {}
        self._refused = Refused("translated destinations of network namespace %d stay unknown: %s")
        # In the order in which they are to be asked again.
        self._behind: dict[int, None] = {}
        self._catch_up_at_s = 0.0
        self._hear_new_at_s = 0.0
        self._poll = select.epoll()

    @property
    def namespaces(self) -> int:
        return len(self._trackers)

    @property
    def refused(self) -> int:
        return len(self._refused)

    def wait(self, timeout_s: float) -> None:
        """Until one has something to say, but no longer than this."""
        self._poll.poll(timeout_s)

    def rescan(self) -> None:
        """Listens to namespaces that are new; lets go of those nobody is in: a socket would keep them alive."""
        there = doors() if is_loaded() else {}
        for netns in self._trackers.keys() - there.keys():
            self._listen(netns)
            self._poll.unregister(self._trackers[netns].fileno())
            self._trackers.pop(netns).close()
            self._gone.add(netns)
        if others := self._gone & there.keys():
            self._gone -= others
            self._forget(others)
        self._doors = there
        self._refused.keep(there)
        self._behind = {netns: None for netns in self._behind if netns in there}
        self._catch_up()
        for netns in self._refused.to_try(there.keys() - self._trackers.keys()):
            if len(self._trackers) >= _MAX_NAMESPACES:
                self._refused.add(netns, f"{_MAX_NAMESPACES} are listened to already")
                continue
            try:
                tracker = visit(there[netns], Tracker)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._refused.add(netns, error)
                continue
            self._refused.discard(netns)
            self._trackers[netns] = tracker
            self._poll.register(tracker.fileno(), select.EPOLLIN)
            self._dump(netns)

    def drain(self) -> None:
        for netns in self._trackers:
            self._listen(netns)

    def hear(self, netns: int, own: int) -> None:
        """What those say that may know of connections there; a namespace may be younger than the last look."""
        if netns not in self._trackers and netns not in self._refused and time.monotonic() >= self._hear_new_at_s:
            self._hear_new_at_s = time.monotonic() + _HEAR_NEW_S
            self.rescan()
        for one in {netns, own} & self._trackers.keys():
            self._listen(one)

    def settle(self) -> None:
        self.rescan()
        self.drain()
        for netns, tracker in self._trackers.items():
            if not tracker.tells:
                self._dump(netns)

    def close(self) -> None:
        for tracker in self._trackers.values():
            tracker.close()
        self._trackers.clear()
        self._poll.close()

    def _listen(self, netns: int) -> None:
        tracker = self._trackers[netns]
        while True:
            try:
                for ended, one in tracker.events():
                    self._told(netns, ended, one)
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                self._dump(netns)

    def _catch_up(self) -> None:
        """Of trackers that have not said all. One that does not answer costs its patience once a minute at most."""
        if time.monotonic() < self._catch_up_at_s:
            return
        for netns in tuple(self._behind):
            self._dump(netns)
            if netns in self._behind:
                self._catch_up_at_s = time.monotonic() + _CATCH_UP_S
                return

    def _dump(self, netns: int) -> None:
        """What its tracker knows by now, by a socket for this alone; if that cannot be, a later look tries again."""
        try:
            _ask(self._doors[netns], netns, self._told)
        except OSError as error:
            if netns not in self._behind and not isinstance(error, FileNotFoundError):
                log.warning("translated destinations of network namespace %d are not all known yet: %s", netns,
                            error.strerror)
            self._behind.pop(netns, None)
            self._behind[netns] = None
        else:
            self._behind.pop(netns, None)


def ask_all(told: Told) -> dict[int, str]:
    """What all trackers know now, with no socket left open; the namespaces that cannot be asked, and why."""
    refused = {}
    for netns, door in doors().items():
        try:
            _ask(door, netns, told)
        except FileNotFoundError:
            continue
        except OSError as error:
            refused[netns] = str(error.strerror)
    return refused


def _ask(door: Path, netns: int, told: Told) -> None:
    with closing(visit(door, Asker)) as asker:
        try:
            for one in asker.dump():
                told(netns, False, one)
        except TimeoutError:  # a socket's own says neither number nor words
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
