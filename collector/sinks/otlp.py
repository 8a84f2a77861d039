"""OpenTelemetry by OTLP over HTTP: each record a log record, its tags and fields the attributes, under their own names.

Logs, not metrics: a record is what happened in one interval between two ends. As metrics, each pair of ends and
process would be a time series of its own, which the SDK merges into one past 2,000 and backends bill; and several
fields measured together would come apart. OpenTelemetry's own receiver of NetFlow makes logs, too.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.sdk.resources import Resource

from collector.record import FieldValue, Record, fits
from collector.sinks.chunk import Chunk, Refused
from collector.sinks.http import Poster, Secrets, authorised, routed
from collector.sinks.options import Otlp

_HEADERS = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
_PATH = "/v1/logs"
_SCOPE = InstrumentationScope(name="kcompat")


class OtlpLogs:
    """The resource is the SDK's, so that OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES mean what they always do."""

    def __init__(self, options: Otlp) -> None:
        self.name = options.name
        self._poster = Poster(options, _HEADERS, lambda: _secrets(options))
        self._target = "" if options.name.endswith(_PATH) else _PATH
        self._resource = Resource.create({"service.name": "kcompat"}).attributes

    def encode(self, records: Sequence[Record]) -> Iterator[Chunk]:
        for _, points in routed(records, lambda measurement: self._target):
            attributes = dict(self._resource)
            if host := points[0].tags.get("host"):
                attributes.setdefault("host.name", host)
            request = ExportLogsServiceRequest(resource_logs=[ResourceLogs(
                resource=resource_pb2.Resource(attributes=_key_values(attributes)),
                scope_logs=[ScopeLogs(scope=_SCOPE, log_records=[_log(record) for record in points])])])
            yield Chunk(self._target, len(points), request.SerializeToString())

    def pack(self, chunk: Chunk) -> Chunk:
        return replace(chunk, payload=gzip.compress(chunk.payload, compresslevel=1))

    def send(self, chunk: Chunk) -> None:
        said = self._poster.post(chunk.route, chunk.payload)
        try:
            partial = ExportLogsServiceResponse.FromString(said).partial_success
        except DecodeError:
            return  # it said 2xx, in words of its own
        if partial.rejected_log_records:
            raise Refused(partial.error_message or "no reason given", min(partial.rejected_log_records, chunk.points))

    def report(self, what: str) -> None:
        """OTLP has no place for it."""

    def renew(self) -> None:
        self._poster.renew()

    def close(self) -> None:
        self._poster.close()


def _secrets(options: Otlp) -> Secrets:
    read = authorised(options, "Bearer")
    return read._replace(headers={**read.headers, **options.headers})


def _log(record: Record) -> LogRecord:
    fields = {key: value for key, value in record.fields.items() if fits(value)}
    message = fields.pop("message", None)
    return LogRecord(
        time_unix_nano=record.time, observed_time_unix_nano=record.time, event_name=record.measurement,
        severity_number=SeverityNumber.SEVERITY_NUMBER_INFO,
        body=None if message is None else AnyValue(string_value=str(message)),
        attributes=_key_values({**{key: value for key, value in record.tags.items() if value}, **fields}))


def _key_values(values: Mapping[str, object]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any(value)) for key, value in values.items()
            if isinstance(value, str | bool | int | float)]


def _any(value: FieldValue) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value.encode("utf-8", "replace").decode())
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(double_value=value)
