"""Line protocol by HTTP POST, to DataKit or anything that speaks InfluxDB's write API."""

from __future__ import annotations

import gzip
import logging
import random
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise

import httpx

from collector.record import Record, to_line_protocol
from collector.sinks.queued import Queued
from collector.sinks.sink import CLOSE_DEADLINE_S
from kcompat.errors import KcompatError

logger = logging.getLogger(__name__)
# At INFO httpx logs every request with its whole URL, token included.
logging.getLogger("httpx").setLevel(logging.WARNING)

MAX_POINTS = 512
_HEADERS = {"Content-Type": "text/plain; charset=utf-8", "Content-Encoding": "gzip"}
_SHOWN_OF_ANSWER = 300


class HttpSink:
    """Posts at most 512 points a request, in order, and blocks while it retries: put it behind a `Queued`.

    A server error, a timeout or no connection is tried again after a back-off with jitter; any other refusal is
    final, for the same points would be refused again. `give_up` ends every wait.
    """

    def __init__(self, url: str, give_up: threading.Event, *, timeout_s: float = 10.0, tries: int = 8,
                 backoff_s: float = 0.5, longest_backoff_s: float = 30.0) -> None:
        self.name = _without_secrets(httpx.URL(url))
        self.written = 0
        self.dropped = 0
        self._url = url
        self._give_up = give_up
        self._tries = tries
        self._backoff_s = backoff_s
        self._longest_backoff_s = longest_backoff_s
        self._client = httpx.Client(timeout=timeout_s, headers=_HEADERS)
        self._trouble = ""

    def write(self, records: Sequence[Record]) -> None:
        cuts = [*range(0, len(records), MAX_POINTS), len(records)]
        for start, end in pairwise(cuts):
            points = records[start:end]
            if self._send("\n".join(map(to_line_protocol, points)).encode()):
                self.written += len(points)
            else:
                self.dropped += len(points)

    def flush(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Nothing is held between writes."""

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        self._client.close()

    def _send(self, lines: bytes) -> bool:
        body = gzip.compress(lines, compresslevel=1)
        for pause_s in self._pauses():
            if self._give_up.wait(pause_s):
                return False
            try:
                answer = self._client.post(self._url, content=body)
            except httpx.TransportError as error:
                self._tell(f"{type(error).__name__}: {error}", "will be tried again")
                continue
            if answer.is_success:
                self._tell("", "")
                return True
            told = f"{answer.status_code} {answer.reason_phrase}: {_one_line(answer.text)}"
            if not answer.is_server_error:
                self._tell(told, "the points are dropped")
                return False
            self._tell(told, "will be tried again")
        return False

    def _pauses(self) -> Iterator[float]:
        """Before each try: none, then doubling. Jitter, so that a fleet does not come back in one wave."""
        yield 0.0
        for doublings in range(self._tries - 1):
            longest = min(self._backoff_s * 2 ** doublings, self._longest_backoff_s)
            yield random.uniform(longest / 2, longest)

    def _tell(self, trouble: str, consequence: str) -> None:
        """One line when the trouble starts or changes and one when it ends, not one a request."""
        if trouble and trouble != self._trouble:
            logger.warning("%s: %s (%s)", self.name, trouble, consequence)
        elif self._trouble and not trouble:
            logger.info("%s: accepts points again", self.name)
        self._trouble = trouble


def open_http(spec: str) -> Queued:
    """A queued sink for a URL."""
    try:
        url = httpx.URL(spec)
    except httpx.InvalidURL as error:
        raise KcompatError(f"sink {spec!r}: {error}") from None
    if not url.host:
        raise KcompatError(f"sink {spec!r}: the URL names no host")
    give_up = threading.Event()
    return Queued(HttpSink(spec, give_up), give_up)


def _without_secrets(url: httpx.URL) -> str:
    """For logs: without user, password and query, where DataKit's token stands."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_SHOWN_OF_ANSWER]
