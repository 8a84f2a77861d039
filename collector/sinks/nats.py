"""NATS JetStream: one message of JSON a record, acknowledged by the stream, known again by its message ID."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import nats
from nats.aio.client import Client
from nats.errors import MaxPayloadError
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from collector.record import Record, to_jsons
from collector.sinks.chunk import Chunk, Refused, Retry
from collector.sinks.http import routed
from collector.sinks.options import Nats
from kcompat.errors import KcompatError


class JetStream:
    """A chunk is sent whole and counts when each of its messages is acknowledged.

    One that is sent again keeps its IDs: within the stream's window (two minutes unless it says otherwise) the
    server leaves out those it has.
    """

    def __init__(self, options: Nats) -> None:
        self.name = options.name
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._client: Client | None = None
        _settings(options)  # what is wrong with them is said now

    def encode(self, records: Sequence[Record]) -> Iterator[Chunk]:
        subject = self._options.subject
        for route, points in routed(records, lambda measurement: f"{subject}.{measurement}"):
            yield Chunk(route, len(points), "\n".join(to_jsons(points)).encode())

    def pack(self, chunk: Chunk) -> Chunk:
        return replace(chunk, payload=zlib.compress(chunk.payload, 1))

    def send(self, chunk: Chunk) -> None:
        try:
            self._loop.run_until_complete(asyncio.wait_for(self._send(chunk), 2 * self._options.timeout_s))
        except (Refused, Retry):
            raise
        except KcompatError as error:
            raise Retry(str(error)) from None
        except Exception as error:
            # nats-py raises its own, asyncio's and the socket's errors: none of them says the message is at fault.
            self._loop.run_until_complete(self._hang_up())
            raise Retry(f"{type(error).__name__}: {error}") from None

    def report(self, what: str) -> None:
        """A stream is for records."""

    def renew(self) -> None:
        """They are read for every connection, and one that stands was let in."""

    def close(self) -> None:
        self._loop.run_until_complete(self._hang_up())
        self._loop.close()

    async def _send(self, chunk: Chunk) -> None:
        stream = await self._stream()
        sent = [self._publish(stream, chunk.route, line, f"{chunk.key.hex()}-{number}")
                for number, line in enumerate(zlib.decompress(chunk.payload).split(b"\n"))]
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        final = [error for error in failed if isinstance(error, MaxPayloadError)]
        if len(final) < len(failed):
            raise next(error for error in failed if not isinstance(error, MaxPayloadError))
        if final:
            raise Refused(f"{final[0]}", len(final))

    async def _publish(self, stream: JetStreamContext, subject: str, line: bytes, name: str) -> None:
        await stream.publish(subject, line, timeout=self._options.timeout_s, headers={"Nats-Msg-Id": name})

    async def _stream(self) -> JetStreamContext:
        """Of a connection that stands; the stream is made where it is missing and we may."""
        if self._client is None or not self._client.is_connected:
            await self._hang_up()
            self._client = await nats.connect(self._options.url, **_settings(self._options))
            stream = self._client.jetstream(timeout=self._options.timeout_s)
            try:
                await stream.stream_info(self._options.stream)
            except NotFoundError:
                with contextlib.suppress(APIError):
                    await stream.add_stream(name=self._options.stream, subjects=[f"{self._options.subject}.>"])
        return self._client.jetstream(timeout=self._options.timeout_s)

    async def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                await client.close()


def _settings(options: Nats) -> dict[str, Any]:
    """Without reconnecting: a connection that fell is made anew by the next try, with its pauses."""
    async def quiet(error: Exception) -> None:
        """Whoever waits for an answer gets the error too."""

    made: dict[str, Any] = {"allow_reconnect": False, "connect_timeout": options.timeout_s, "error_cb": quiet,
                            "name": "kcompat"}
    if options.token is not None:
        made["token"] = options.token
    if options.username is not None:
        made |= {"user": options.username, "password": options.password or ""}
    if options.credentials_file is not None:
        made["user_credentials"] = str(options.credentials_file)
    if options.ca_file is not None:
        try:
            made["tls"] = ssl.create_default_context(cafile=str(options.ca_file))
        except OSError as error:
            raise KcompatError(f"ca_file: {options.ca_file}: {error}") from None
    return made
