"""What a soak's load did and what the collector wrote down of it: the same totals under the same keys, or not."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from collector.record import Record, to_line_protocol

Key = tuple[str, ...]
ADDRESSES = "10.216."
TYPED = ": soak "
TLS_PORT = 21443
_BYTES = ("bytes_read", "bytes_written")
_NETFLOW = (*_BYTES, "tcp_established", "tcp_closed")
_BIN_S, _HOUR_S = 60.0, 3600.0


class Books:
    """Totals that threads add to; told as JSON from one process to another."""

    def __init__(self) -> None:
        self._totals: Counter[Key] = Counter()
        self._lock = threading.Lock()

    def add(self, *key: str, count: int = 1) -> None:
        with self._lock:
            self._totals[key] += count

    def take_in(self, told: str) -> None:
        with self._lock:
            for *key, count in json.loads(told):
                self._totals[tuple(key)] += count

    def told(self) -> str:
        return json.dumps([[*key, count] for key, count in self.totals().items()])

    def totals(self) -> Counter[Key]:
        with self._lock:
            return Counter({key: count for key, count in self._totals.items() if count})


@dataclass(slots=True)
class Written:
    """Totals of the records of the load, and all records as they go to a server, by their lines' hashes."""

    totals: Counter[Key] = field(default_factory=Counter)
    lines: set[int] = field(default_factory=set)
    records: int = 0

    def read(self, lines: Iterable[str]) -> None:
        """JSON Lines, as the collector writes them."""
        for line in lines:
            told = json.loads(line)
            record = Record(told["measurement"], told["tags"], told["fields"], told["time"])
            self.records += 1
            self.lines.add(hash(to_line_protocol(record)))
            self.totals.update(dict(_of(record)))


def _of(record: Record) -> Iterable[tuple[Key, int]]:
    """What one record adds to which total; nothing where it is of somebody else's traffic."""
    tags, fields = record.tags, record.fields
    if record.measurement == "bash":
        if str(fields["cmd"]).startswith(TYPED):
            yield ("bash", str(fields["user"])), 1
        return
    if not tags["src_ip"].startswith(ADDRESSES):
        return
    direction = tags["direction"]
    if record.measurement == "netflow":
        port = tags["dst_port" if direction == "outgoing" else "src_port"]
        for name in _NETFLOW:
            if count := int(fields.get(name, 0)):
                yield ("netflow", direction, port, name), count
    elif record.measurement == "httpflow":
        yield ("httpflow", direction, *(str(fields[name]) for name in ("method", "path", "status_code"))), \
            int(fields["count"])
    else:
        yield ("dnsflow", direction, tags["transport"], str(fields["rcode"])), int(fields["count"])


def differences(done: Counter[Key], seen: Counter[Key]) -> list[str]:
    """Every total that is not what the load counted. Of TLS the bytes must be those the other end has."""
    faults = [f"{' '.join(key)}: {seen[key]} instead of {done[key]}"
              for key in sorted(done.keys() | seen.keys()) if not _is_ciphertext(key) and seen[key] != done[key]]
    for sent, got in (("outgoing", "incoming"), ("incoming", "outgoing")):
        left, right = (seen["netflow", end, str(TLS_PORT), name]
                       for end, name in ((sent, "bytes_written"), (got, "bytes_read")))
        if left != right:
            faults.append(f"TLS: {left} bytes written {sent}, {right} read {got}")
    return faults


def _is_ciphertext(key: Key) -> bool:
    """The load hands cleartext to a library: how many bytes that writes only its peer can tell."""
    return key[0] == "netflow" and key[2] == str(TLS_PORT) and key[3] in _BYTES


class Sample(NamedTuple):
    """The collector at one time, in seconds since the soak began."""

    at_s: float
    resident_mb: float
    anonymous_mb: float
    descriptors: int
    threads: int


def by_minute(samples: Sequence[Sample], what: str) -> list[tuple[int, float]]:
    """Each minute, and the median of its samples."""
    bins: dict[int, list[float]] = {}
    for sample in samples:
        bins.setdefault(int(sample.at_s // _BIN_S), []).append(getattr(sample, what))
    return [(at, median(values)) for at, values in sorted(bins.items())]


def slope_mb_per_hour(samples: Sequence[Sample]) -> float:
    """Of resident memory: the median of the slopes between any two minutes, so that one step is no trend of its own."""
    minutes = by_minute(samples, "resident_mb")
    slopes = [(after - before) / ((late - early) * _BIN_S) * _HOUR_S
              for number, (early, before) in enumerate(minutes) for late, after in minutes[number + 1:]]
    return median(slopes) if slopes else 0.0
