"""Line protocol by HTTP POST: DataKit, InfluxDB 1 and 2, VictoriaMetrics, or whatever takes it at a URL."""

from __future__ import annotations

import gzip
import json
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple
from urllib.parse import urlencode

import httpx

from collector.record import Record, to_lines
from collector.sinks.chunk import Chunk, Refused, Retry
from collector.sinks.labels import labelled
from collector.sinks.options import Http, Influx, Influx2, header_value
from collector.sinks.spec import bare
from collector.sinks.trouble import Trouble
from kcompat.errors import KcompatError

logger = logging.getLogger(__name__)
# At INFO httpx logs every request with its whole URL, token included.
logging.getLogger("httpx").setLevel(logging.WARNING)

MAX_POINTS = 512
_LINES = {"Content-Type": "text/plain; charset=utf-8"}
_SHOWN_OF_ANSWER = 300
_READ_OF_ANSWER = 1 << 16
# Answers of a server that is busy, not of one that dislikes what it was sent.
_LATER = frozenset((408, 425, 429))
# Answers that are about who sends or where to: they change when a token, an address or a server's database does.
_UNKNOWN = frozenset((401, 403))
_ELSEWHERE = frozenset((404, 405, 407))
_LOGGED = ("bash",)


class Secrets(NamedTuple):
    """What a request shows of us: in its headers, by HTTP's own authentication, in its query."""

    headers: Mapping[str, str]
    auth: tuple[str, str] | None
    query: str = ""


class Poster:
    """Posts bodies to one server. `secrets` are read again when it says that it does not know us."""

    def __init__(self, options: Http, headers: Mapping[str, str], secrets: Callable[[], Secrets]) -> None:
        self._url = _url(options.url)
        self._timeout_s = options.timeout_s
        self._read_secrets, self._secrets, self._stale = secrets, secrets(), False
        self._unread = Trouble()
        self._client = httpx.Client(timeout=options.timeout_s, headers=headers, verify=_trusted(options, self._url))

    def post(self, target: str, body: bytes, **headers: str) -> bytes:
        """To a path below the server's URL, or to that as it is: the answer. Retry or Refused when it takes it not."""
        shown = self._renewed()
        if shown.query:
            target += f"{'&' if '?' in target else '?'}{shown.query}"
        url = self._url.copy_with(raw_path=(self._url.path.rstrip("/") + target).encode()) if target else self._url
        deadline = time.monotonic() + 2 * self._timeout_s
        try:
            with self._client.stream("POST", url, content=body, headers={**shown.headers, **headers},
                                     auth=shown.auth) as answer:
                said = _read(answer, deadline)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Retry(f"{type(error).__name__}: {error}") from None
        if answer.is_success:
            return said
        text = " ".join(said.decode(errors="replace").split())[:_SHOWN_OF_ANSWER]
        told = f"{answer.status_code} {answer.reason_phrase}: {text}"
        if answer.status_code in _UNKNOWN:
            self._stale = True
        if not answer.is_client_error or answer.status_code in _LATER | _UNKNOWN | _ELSEWHERE:
            asked = answer.headers.get("Retry-After", "")
            raise Retry(told, float(asked) if asked.isascii() and asked.isdigit() else 0.0)
        raise Refused(told)

    def renew(self) -> None:
        """May be called by another thread."""
        self._stale = True

    def close(self) -> None:
        self._client.close()

    def _renewed(self) -> Secrets:
        """Where they cannot be read now, those of before may still do."""
        if self._stale:
            self._stale = False
            try:
                self._secrets = self._read_secrets()
                self._unread.ends()
            except KcompatError as error:
                if self._unread.begins(str(error)):
                    logger.warning("%s (what was read before is shown)", error)
        return self._secrets


class LineProtocol:
    """Line protocol, gzipped, at most 512 points a request; `target` is the path of a measurement.

    `spelled` makes of points what the server can keep.
    """

    def __init__(self, options: Http, target: Callable[[str], str], secrets: Callable[[], Secrets],
                 report_to: str | None = None,
                 spelled: Callable[[Sequence[Record]], Sequence[Record]] = lambda points: points) -> None:
        self.name = options.name
        self._target, self._report_to, self._spelled = target, report_to, spelled
        self._poster = Poster(options, _LINES, secrets)

    def encode(self, records: Sequence[Record]) -> Iterator[Chunk]:
        for route, points in routed(records, self._target):
            yield Chunk(route, len(points), "\n".join(to_lines(self._spelled(points))).encode())

    def pack(self, chunk: Chunk) -> Chunk:
        return replace(chunk, payload=gzip.compress(chunk.payload, compresslevel=1))

    def send(self, chunk: Chunk) -> None:
        self._poster.post(chunk.route, chunk.payload, **{"Content-Encoding": "gzip"})

    def report(self, what: str) -> None:
        if self._report_to is None:
            return
        body = json.dumps({"input": "ebpf", "err_content": what}).encode()
        try:
            self._poster.post(self._report_to, body, **{"Content-Type": "application/json"})
        except (Retry, Refused) as error:
            logger.debug("%s: %s", self.name, error)

    def renew(self) -> None:
        self._poster.renew()

    def close(self) -> None:
        self._poster.close()


def routed(records: Sequence[Record], route: Callable[[str], str]) -> Iterator[tuple[str, Sequence[Record]]]:
    """Runs of records that go to one place, in order, at most 512 each."""
    begin = 0
    while begin < len(records):
        target = route(records[begin].measurement)
        end = begin + 1
        while end < min(begin + MAX_POINTS, len(records)) and (
                records[end].measurement == records[begin].measurement or route(records[end].measurement) == target):
            end += 1
        yield target, records[begin:end]
        begin = end


def plain(options: Http) -> LineProtocol:
    """At the URL as it is, which may hold a user, a password, or a token in its query."""
    return LineProtocol(options, lambda measurement: "", partial(authorised, options, "Token"))


def datakit(options: Http) -> LineProtocol:
    """DataKit keeps flows and what people type apart; a token is only for a DataWay."""
    def target(measurement: str) -> str:
        category, source = ("logging", "ebpf-bash") if measurement in _LOGGED else ("network", "ebpf-net")
        return f"/v1/write/{category}?input={source}"

    def secrets() -> Secrets:
        return Secrets({}, None, urlencode({"token": token}) if (token := options.token) else "")

    return LineProtocol(options, target, secrets, report_to="/v1/lasterror")


def influxdb(options: Influx) -> LineProtocol:
    return LineProtocol(options, _influx(options), partial(authorised, options, "Token"))


def victoriametrics(options: Influx) -> LineProtocol:
    """It takes InfluxDB's write API, and keeps numbers alone; a token is one for vmauth."""
    return LineProtocol(options, _influx(options), partial(authorised, options, "Bearer"), spelled=labelled)


def _influx(options: Influx) -> Callable[[str], str]:
    policy = {"rp": options.retention_policy} if options.retention_policy else {}
    target = "/write?" + urlencode({"db": options.database, **policy, "precision": "ns"})
    return lambda measurement: target


def influxdb2(options: Influx2) -> LineProtocol:
    target = "/api/v2/write?" + urlencode({"org": options.org, "bucket": options.bucket, "precision": "ns"})
    return LineProtocol(options, lambda measurement: target, partial(authorised, options, "Token"))


def authorised(options: Http, scheme: str) -> Secrets:
    """A token in a header, and a user with a password."""
    token = options.token
    try:
        header_value(token or "")
    except ValueError as error:
        raise KcompatError(f"sink {options.name!r}: the token {error}") from None
    return Secrets({"Authorization": f"{scheme} {token}"} if token else {},
                   (options.username, options.password or "") if options.username is not None else None)


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise KcompatError(f"sink {bare(text)!r}: {error}") from None
    if url.scheme not in ("http", "https"):
        raise KcompatError(f"sink {bare(text)!r}: expected http:// or https://")
    return url


def _trusted(options: Http, url: httpx.URL) -> ssl.SSLContext | bool:
    """Of a server without TLS nothing is verified: reading in whom the world trusts takes 3 MB and 60 ms, 1 MB and
    20 ms each further time.
    """
    if options.ca_file is None:
        return True if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return ssl.create_default_context(cafile=str(options.ca_file))
    except OSError as error:
        raise KcompatError(f"ca_file: {options.ca_file}: {error}") from None


def _read(answer: httpx.Response, deadline: float) -> bytes:
    """What a server says, unless it takes for ever to say it: each byte in time is not an answer in time."""
    parts: list[bytes] = []
    for part in answer.iter_bytes():
        parts.append(part)
        if sum(map(len, parts)) > _READ_OF_ANSWER:
            break
        if time.monotonic() > deadline:
            raise Retry("the answer does not come to an end")
    return b"".join(parts)
