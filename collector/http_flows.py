"""HTTP exchanges merged into httpflow records: one per connection's ends, method, path, status and version."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from collector.addresses import describe, star_ports
from collector.config import Options
from collector.flows import NameOf, ProcessOf, TargetOf
from collector.http_exchanges import Ends, Seen
from collector.packed_flows import NOT_KNOWN, Target
from collector.record import FieldValue, Record, apart

MEASUREMENT = "httpflow"
OVERFLOW = "*"
_MAX_WAYS = 1 << 14
# A part of a path that names one thing of many: a number, a UUID, a long hexadecimal number.
_HEX = "[0-9A-Fa-f]"
_UUID = f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}"
_ID = re.compile(rf"(?<=/)(?:\d+|{_UUID}|(?=[^/]*\d){_HEX}{{16,}})(?=/|\Z)")


class _Way(NamedTuple):
    """What the tags say of a connection; the namespace is in none, yet two of them never make one flow."""

    local: bytes
    src_port: str
    remote: bytes
    dst_port: str
    netns: int
    pid: int
    process_name: str
    direction: str
    target: Target | None
    process_tags: tuple[tuple[str, str], ...]


class _Key(NamedTuple):
    way: _Way
    host: str
    method: str
    path: str
    truncated: bool
    status_code: int
    http_version: str
    grpc_status: int | None


class HttpFlows:
    """Sums since the last `take`. `left_out` says how many exchanges are in no record and why, for good.

    No more than `options.max_paths` paths an interval: further ones are counted under the path ``*``, as `starred`
    says. No more than `options.max_flows` points: what is beyond is `overflow`, a loss.
    """

    def __init__(self, options: Callable[[], Options], process_of: ProcessOf | None = None,
                 target_of: TargetOf | None = None) -> None:
        """`options` is asked with each exchange; `process_of` has the last word on `process_name`, `target_of` fills
        the `dst_nat_*`.
        """
        self.left_out: Counter[str] = Counter()
        self.starred = 0
        self._asked, self._options = options, options()
        self._process_of, self._target_of = process_of, target_of
        # Count and sum of latencies in ns.
        self._sums: dict[_Key, list[int]] = {}
        self._paths: set[str] = set()
        self._ways: dict[Ends, tuple[_Way, str]] = {}

    def add(self, seen: Seen) -> None:
        if self._options is not (options := self._asked()):
            self._options = options
            self._ways.clear()
        ends, exchange, count, latency_ns = seen
        way, fault = self._ways.get(ends) or self._told(ends)
        if fault:
            self.left_out[fault] += count
            return
        # Whose name it is: of the other end only where that is the server.
        host = name_of_host(exchange.host) if ends.asks else ""
        key = _Key(way, host, exchange.method, self._path(exchange.path, count), exchange.truncated,
                   exchange.status_code, exchange.http_version, exchange.grpc_status)
        sums = self._sums.get(key)
        if sums is None:
            if len(self._sums) >= self._options.max_flows:
                self.left_out["overflow"] += count
                return
            sums = self._sums[key] = [0, 0]
        sums[0] += count
        sums[1] += latency_ns

    def take(self, time_ns: int, name_of: NameOf) -> list[Record]:
        sums, self._sums = self._sums, {}
        self._paths.clear()
        self._ways.clear()
        return apart(Record(MEASUREMENT, self._tags(key, name_of), _fields(key, *values), time_ns)
                     for key, values in sums.items())

    def _path(self, path: str, count: int) -> str:
        path = self._options.redact.path(path)
        if self._options.http_templates:
            path = template_of(path)
        if path not in self._paths:
            if len(self._paths) >= self._options.max_paths:
                self.starred += count
                return OVERFLOW
            self._paths.add(path)
        return path

    def _told(self, ends: Ends) -> tuple[_Way, str]:
        """What is the same for every exchange of a connection, and why they are left out, if they are."""
        direction = "outgoing" if ends.asks else "incoming"
        src_port, dst_port = star_ports(ends.local_port, ends.remote_port, direction, self._options.ephemeral_port)
        name, tags = self._process_of(ends.pid, ends.process_name) if self._process_of else (ends.process_name, {})
        target = (self._target_of(ends.netns, "tcp", ends.local, ends.local_port, ends.remote, ends.remote_port)
                  if self._target_of and ends.asks else None)
        way = _Way(ends.local, src_port, ends.remote, dst_port, ends.netns, ends.pid, name, direction, target,
                   tuple(tags.items()))
        if len(self._ways) >= _MAX_WAYS:
            self._ways.clear()
        made = self._ways[ends] = way, self._fault(ends, name, direction)
        return made

    def _fault(self, ends: Ends, process_name: str, direction: str) -> str:
        exclude, both = self._options.exclude, (ends.local, ends.remote)
        if not ends.local_port or not ends.remote_port:
            return "port"
        if any(describe(end).is_zero for end in both):
            return "address"
        if not self._options.loopback and any(describe(end).type == "loopback" for end in both):
            return "loopback"
        if (direction in exclude.directions or process_name in exclude.processes
                or ends.local_port in exclude.ports or ends.remote_port in exclude.ports
                or any(cidr.holds(end) for cidr in exclude.cidrs for end in both)
                or (describe(ends.remote).family == "IPv6" and not self._options.ipv6)):
            return "excluded"
        return ""

    def _tags(self, key: _Key, name_of: NameOf) -> dict[str, str]:
        way = key.way
        src, dst = describe(way.local), describe(way.remote)
        name = name_of(way.netns, way.remote) or key.host
        return {
            "host": self._options.host,
            "source": MEASUREMENT,
            "direction": way.direction,
            "src_ip": src.text,
            "src_port": way.src_port,
            "src_ip_type": src.type,
            "dst_ip": dst.text,
            "dst_port": way.dst_port,
            "dst_ip_type": dst.type,
            "dst_nat_ip": describe(way.target[0]).text if way.target else NOT_KNOWN,
            "dst_nat_port": str(way.target[1]) if way.target else NOT_KNOWN,
            "pid": str(way.pid),
            "process_name": way.process_name or NOT_KNOWN,
            "transport": "tcp",
            "family": dst.family,
            **dict(way.process_tags),
            **({"dst_domain": name} if name else {}),
        }


def _fields(key: _Key, count: int, latency_ns: int) -> dict[str, FieldValue]:
    return {"truncated": key.truncated, "path": key.path, "status_code": key.status_code, "method": key.method,
            "latency": latency_ns // count, "http_version": key.http_version, "count": count,
            **({"grpc_status": key.grpc_status} if key.grpc_status is not None else {})}


def template_of(path: str) -> str:
    """The path with its ids taken out: ``/users/17/posts`` is ``/users/{id}/posts``."""
    return _ID.sub("{id}", path)


def name_of_host(host: str) -> str:
    """A Host header without its port; empty where it is an address, which is no name."""
    name, _, port = host.rpartition(":")
    if not name or not port.isdigit():
        name = host
    name = name.rstrip(".")
    return "" if not name or name[-1].isdigit() or name.startswith("[") else name
