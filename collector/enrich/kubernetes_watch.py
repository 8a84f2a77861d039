"""One kind of object followed: listed in pages, then watched from there on, for as long as it takes."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

PAGE = 500
# An object is at most 1.5 MB in etcd; an event that is longer than this is none.
_LONGEST_LINE = 8 << 20
# Far more than any cluster's; a list of which there is more has no end.
_LONGEST_PAGE, _MOST_PAGES = 256 << 20, 1000
_CHUNK = 1 << 16
_CONNECT_S, _READ_S = 10.0, 60.0
# A watch ends after some minutes, each after others. One that says nothing for longer than a server's bookmarks are
# apart is begun anew where it was, for it may have no other end any more.
_WATCH_S, _QUIET_S = (240, 480), 150.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 60.0
# What went well for so long did go well.
_LASTING_S = 10.0
_GONE = 410

Json = Mapping[str, Any]
T = TypeVar("T")


class Answer(Protocol):
    """What is used of a urllib3.HTTPResponse."""

    def stream(self, amt: int | None = ..., decode_content: bool | None = ...) -> Iterator[bytes]: ...

    def close(self) -> None: ...

    def shutdown(self) -> None: ...

    def release_conn(self) -> None: ...


class Gone(Exception):
    """The server does not know any more what came after the place where we are: 410."""


class Refused(Exception):
    """An answer that is none; `status` is HTTP's, 0 where there was not even that."""

    def __init__(self, status: int, words: str) -> None:
        self.status = status
        super().__init__(f"{status} {words}" if status else words)


# GET of the collection with these parameters. Raises Refused, or Gone for a 410.
Fetch = Callable[[Mapping[str, Any], tuple[float, float]], Answer]


class Store(Protocol[T]):
    """Where objects go."""

    def replace(self, objects: list[T]) -> None: ...

    def put(self, one: T) -> None: ...

    def drop(self, uid: str) -> None: ...


class Watcher(Generic[T]):
    """Lists and watches until `stop`; `strip` keeps of an object what is needed, before the next is looked at.

    `heard` is told whenever the server has answered, `failed` of everything that went wrong.
    """

    def __init__(self, name: str, fetch: Fetch, strip: Callable[[Json], T], store: Store[T], *,
                 stop: threading.Event, heard: Callable[[str, bool], None], failed: Callable[[str, str], None],
                 resync_s: float, first_pause_s: float = _FIRST_PAUSE_S) -> None:
        self.name = name
        self._fetch, self._strip, self._store = fetch, strip, store
        self._stop, self._heard, self._failed = stop, heard, failed
        self._resync_s = resync_s
        self._first_pause_s = first_pause_s
        self._version = ""
        self._list_at_s = 0.0
        self.lists = self.watches = self.events = self.skipped = 0
        """How often it was listed and watched, and what came of that; `skipped` objects could not be read."""

    def run(self) -> None:
        """Never ends by itself. After each failure in a row it waits up to twice as long."""
        pause_s = self._first_pause_s
        while not self._stop.is_set():
            events, begun_s = self.events, time.monotonic()
            try:
                self._once()
                failed = ""
            except Gone:
                log.debug("kubernetes %s: listed anew", self.name)
                self._version, failed = "", "410 Gone"
            except Exception as error:
                failed = str(error) or type(error).__name__
                self._failed(self.name, failed)
            # A list alone is no success: a server may answer every watch with 410.
            if self.events > events or time.monotonic() - begun_s > _LASTING_S:
                pause_s = self._first_pause_s
            if failed or time.monotonic() - begun_s < self._first_pause_s:
                # Of many collectors that lose one server not all come back at once.
                self._stop.wait(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _once(self) -> None:
        if not self._version or time.monotonic() >= self._list_at_s:
            self._version = self._list()
            self._list_at_s = time.monotonic() + self._resync_s * random.uniform(0.9, 1.1)
        self._watch()

    def _list(self) -> str:
        """Replaces everything by what there is; gives the version that was. The old stays until the new is whole."""
        objects: list[T] = []
        token = None
        for _ in range(_MOST_PAGES):
            page = self._page({"limit": PAGE} | ({"_continue": token} if token else {}))
            meta = page.get("metadata") or {}
            objects += [one for item in page.get("items") or [] if (one := self._stripped(item)) is not None]
            before, token = token, meta.get("continue")
            self._heard(self.name, False)
            if not token:
                break
            if token == before:
                raise Refused(0, "a page of a list that is followed by itself")
            if self._stop.is_set():
                return ""
        else:
            raise Refused(0, f"a list of over {_MOST_PAGES} pages")
        self._store.replace(objects)
        self.lists += 1
        self._heard(self.name, True)
        version = meta.get("resourceVersion")
        if not version:
            raise Refused(0, "a list without a resourceVersion")
        return str(version)

    def _page(self, parameters: Mapping[str, Any]) -> Json:
        answer = self._fetch(parameters, (_CONNECT_S, _READ_S))
        try:
            page = json.loads(body(answer))
        finally:
            answer.release_conn()
        if not isinstance(page, dict):
            raise Refused(0, "a list that is no object")
        return page

    def _watch(self) -> None:
        """Until the server ends it. What has come until then is not asked for again."""
        left_s = max(1, min(random.randint(*_WATCH_S), int(self._list_at_s - time.monotonic())))
        answer = self._fetch({"watch": True, "resource_version": self._version, "allow_watch_bookmarks": True,
                              "timeout_seconds": left_s}, (_CONNECT_S, _QUIET_S))
        self.watches += 1
        self._heard(self.name, True)
        try:
            for line in lines(answer):
                if self._stop.is_set():
                    return
                self._take(json.loads(line))
        finally:
            answer.close()

    def _take(self, event: Json) -> None:
        kind, seen = event.get("type"), event.get("object") or {}
        if kind == "ERROR":
            if seen.get("code") == _GONE:
                raise Gone
            raise Refused(int(seen.get("code") or 0), str(seen.get("message") or seen.get("reason") or "ERROR"))
        meta = seen.get("metadata") or {}
        if kind == "DELETED":
            self._store.drop(str(meta.get("uid") or ""))
        elif kind in ("ADDED", "MODIFIED") and (one := self._stripped(seen)) is not None:
            self._store.put(one)
        # Also a BOOKMARK's: that is what it is for.
        if version := meta.get("resourceVersion"):
            self._version = str(version)
        self.events += 1
        self._heard(self.name, True)

    def _stripped(self, seen: Json) -> T | None:
        """None for what cannot be read: one strange object must not hide all others."""
        try:
            if (seen.get("metadata") or {}).get("uid"):
                return self._strip(seen)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            log.debug("kubernetes %s: an object is left out: %s", self.name, error)
        self.skipped += 1
        return None


def body(answer: Answer) -> bytes:
    """All of a page."""
    data = bytearray()
    for chunk in answer.stream(_CHUNK, decode_content=True):
        data += chunk
        if len(data) > _LONGEST_PAGE:
            answer.close()
            raise Refused(0, f"a page of over {_LONGEST_PAGE} bytes")
    return bytes(data)


def lines(answer: Answer) -> Iterator[bytes]:
    """The events of a watch. What comes after the last newline when it ends was cut and is no event."""
    rest = b""
    for chunk in answer.stream(_CHUNK, decode_content=True):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
        if len(rest) > _LONGEST_LINE:
            raise Refused(0, f"an event of over {_LONGEST_LINE} bytes")
