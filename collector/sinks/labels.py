"""For a database of numbers alone: fields that tell points apart become labels, else their sums would run together."""

from __future__ import annotations

from collections.abc import Sequence

from collector.record import Record, Records

# Of the datasets that have such fields.
TELLING = {"httpflow": frozenset(("method", "path", "status_code", "http_version", "truncated", "grpc_status")),
           "dnsflow": frozenset(("rcode", "query_name", "query_type"))}


def labelled(records: Sequence[Record]) -> Sequence[Record]:
    """The same points in the same order."""
    if isinstance(records, Records):
        return records  # of netflow, which has tags for all that tells its points apart
    return [_labelled(one, TELLING[one.measurement]) if one.measurement in TELLING else one for one in records]


def _labelled(record: Record, telling: frozenset[str]) -> Record:
    labels = {name: _text(value) for name, value in record.fields.items() if name in telling}
    fields = {name: value for name, value in record.fields.items() if name not in telling}
    return record._replace(tags={**record.tags, **labels}, fields=fields)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
