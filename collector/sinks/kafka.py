"""Kafka: one message of JSON a record, acknowledged by every replica in sync, keyed by host."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from collector.record import Record, to_jsons
from collector.sinks.chunk import Chunk, Refused, Retry
from collector.sinks.http import routed
from collector.sinks.options import Kafka
from kcompat.errors import KcompatError

# What librdkafka logs of every attempt is told once, with the points it concerns.
_librdkafka = logging.getLogger(f"{__name__}.librdkafka")
_librdkafka.setLevel(logging.CRITICAL)
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE)
_POLL_S = 0.1


class Topic:
    """Messages of one host share a key, so a partition, so they stay in order."""

    def __init__(self, options: Kafka) -> None:
        self.name = options.name
        self._options = options
        self._trouble = ""
        self._producer: Producer | None = None
        self._made().close()  # what is wrong with it is said now

    def encode(self, records: Sequence[Record]) -> Iterator[Chunk]:
        begin = 0
        for end in range(1, len(records) + 1):
            if end == len(records) or records[end].tags.get("host") != records[begin].tags.get("host"):
                host = records[begin].tags.get("host", "")
                for route, points in routed(records[begin:end], lambda measurement, host=host: host):  # type: ignore[misc]
                    yield Chunk(route, len(points), "\n".join(to_jsons(points)).encode())
                begin = end

    def pack(self, chunk: Chunk) -> Chunk:
        return replace(chunk, payload=zlib.compress(chunk.payload, 1))

    def send(self, chunk: Chunk) -> None:
        try:
            producer = self._producer = self._producer or self._made()
        except KcompatError as error:
            raise Retry(str(error)) from None
        lines = zlib.decompress(chunk.payload).split(b"\n")
        errors: list[KafkaError] = []
        acknowledged = 0

        def told(error: KafkaError | None, message: Message) -> None:
            nonlocal acknowledged
            acknowledged += error is None
            if error is not None:
                errors.append(error)

        self._trouble = ""
        deadline = time.monotonic() + 2 * self._options.timeout_s
        for line in lines:
            self._produce(producer, chunk.route, line, told, errors, deadline)
        while acknowledged + len(errors) < len(lines) and time.monotonic() < deadline:
            producer.poll(_POLL_S)
        if acknowledged == len(lines):
            return
        refused = sum(error.code() in _TOO_LARGE for error in errors)
        if acknowledged + refused == len(lines):
            raise Refused(errors[0].str(), refused)
        # Nothing of it may arrive later, behind what is sent next.
        self._producer = None
        producer.purge()
        producer.flush(_POLL_S)
        raise Retry(self._trouble or (errors[0].str() if errors else "no acknowledgement in time"))

    def report(self, what: str) -> None:
        """A topic is for records."""

    def renew(self) -> None:
        """They are read for every producer, and one that is no more let in is replaced."""

    def close(self) -> None:
        self._producer = None

    def _produce(self, producer: Producer, host: str, line: bytes, told: Callable[[KafkaError | None, Message], None],
                 errors: list[KafkaError], deadline: float) -> None:
        while True:
            try:
                producer.produce(self._options.topic, line, key=host.encode(), on_delivery=told)
            except BufferError:
                if time.monotonic() > deadline:
                    errors.append(KafkaError(KafkaError._QUEUE_FULL))
                    return
                producer.poll(_POLL_S)
            except KafkaException as error:
                errors.append(error.args[0])
                return
            else:
                return

    def _made(self) -> Producer:
        settings = _settings(self._options, self._options.password or "")
        return _producer(self._options, {**settings, "error_cb": self._heard})

    def _heard(self, error: KafkaError) -> None:
        self._trouble = error.str()


def check(options: Kafka) -> None:
    """KcompatError for a property that librdkafka does not know or take; nobody is connected to."""
    _producer(options, _settings(options, "no secret is read for that")).close()


def _producer(options: Kafka, settings: dict[str, Any]) -> Producer:
    try:
        return Producer(settings, logger=_librdkafka)
    except KafkaException as error:
        raise KcompatError(f"sink {options.name!r}: {error.args[0].str()}") from None


def _settings(options: Kafka, password: str) -> dict[str, Any]:
    """What `properties` say last."""
    return {"bootstrap.servers": urlsplit(options.url).netloc, "enable.idempotence": True, "compression.type": "lz4",
            "message.timeout.ms": int(options.timeout_s * 1000), "client.id": "kcompat",
            "socket.connection.setup.timeout.ms": max(1000, int(options.timeout_s * 1000)),
            "reconnect.backoff.max.ms": int(options.longest_backoff_s * 1000),
            **_secured(options, password), **options.properties}


def _secured(options: Kafka, password: str) -> dict[str, str]:
    """By what was given; `properties` say the rest."""
    protocol = "SASL_" if options.username is not None else ""
    protocol += "SSL" if options.ca_file is not None else "PLAINTEXT"
    made = {"security.protocol": protocol}
    if options.ca_file is not None:
        try:
            options.ca_file.open().close()
        except OSError as error:
            raise KcompatError(f"ca_file: {options.ca_file}: {error.strerror}") from None
        made["ssl.ca.location"] = str(options.ca_file)
    if options.username is not None:
        made |= {"sasl.mechanisms": "PLAIN", "sasl.username": options.username, "sasl.password": password}
    return made
