"""Exchanges merged into dnsflow records: one per flow key and rcode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from collector.addresses import describe
from collector.config import Options
from collector.dns_exchanges import PORT, Exchange
from collector.flows import NameOf
from collector.protocols.dns import question_text
from collector.protocols.packets import TCP
from collector.record import FieldValue, Record, apart

if TYPE_CHECKING:
    from ddsketch import DDSketch

MEASUREMENT = "dnsflow"
# Whether the 16-byte address is this network namespace's own.
IsLocal = Callable[[int, bytes], bool]
_MAX_WAYS = 1 << 13
# Fields that exist with `dns_percentiles`, each as near as this to its true value.
_PERCENTILES = {"latency_p50": 0.5, "latency_p95": 0.95, "latency_p99": 0.99}
_ACCURACY = 0.01


class _Key(NamedTuple):
    """The namespace is in no tag and not in the key: two namespaces that see the same make one point."""

    local: bytes
    src_port: str
    remote: bytes
    dst_port: str
    transport: int
    direction: str
    rcode: int
    question: bytes | None


# Namespace, client, whether it asks from port 53, server.
_Way = tuple[int, bytes, bool, bytes]


class _Ends(NamedTuple):
    tags: tuple[bytes, str, bytes, str]
    direction: str
    fault: str


class DnsFlows:
    """Sums since the last `take`. `left_out` says how many exchanges are in no record and why, for good.

    `forwarded` ones have neither end here: they are of the namespaces, or the machines, at their ends. So are those
    that got our address on their way: they were seen from whoever sent them a moment before.
    """

    def __init__(self, options: Callable[[], Options], is_local: IsLocal) -> None:
        """`options` is asked with each exchange."""
        self.left_out: Counter[str] = Counter()
        self._asked, self._options = options, options()
        self._is_local = is_local
        # Count, sum and maximum of latencies in ns, and a namespace it was seen in.
        self._sums: dict[_Key, list[int]] = {}
        self._sketches: dict[_Key, DDSketch] = {}
        self._ends: dict[_Way, _Ends] = {}

    def add(self, exchange: Exchange) -> None:
        if self._options is not (options := self._asked()):
            self._options = options
            self._ends.clear()
        netns, client, client_port, server, _, transport, rcode, latency_ns, question, _, behind = exchange
        way = (netns, client, client_port == PORT, server)
        ends = self._ends.get(way)
        if ends is None:
            ends = self._told(exchange, way)
        reason = ends.fault or (client_port in self._options.exclude.ports and "excluded")
        if behind and ends.direction == "outgoing" and not self._is_local(netns, behind):
            reason = reason or "forwarded"
        if reason:
            self.left_out[reason] += 1
            return
        key = _Key(*ends.tags, transport, ends.direction, rcode, question if self._options.dns_queries else None)
        sums = self._sums.get(key)
        if sums is None:
            if len(self._sums) >= self._options.max_flows:
                self.left_out["overflow"] += 1
                return
            sums = self._sums[key] = [0, 0, 0, netns]
        if self._options.dns_percentiles:
            if key not in self._sketches:
                self._sketches[key] = _sketch()
            self._sketches[key].add(latency_ns)
        sums[0] += 1
        sums[1] += latency_ns
        if latency_ns > sums[2]:
            sums[2] = latency_ns

    def is_of_here(self, exchange: Exchange) -> bool:
        """Whether its namespace asked, not only passed it on or got its address on the query's way."""
        netns, behind = exchange.netns, exchange.behind
        return self._is_local(netns, exchange.client) and (not behind or self._is_local(netns, behind))

    def take(self, time_ns: int, name_of: NameOf) -> list[Record]:
        sums, self._sums = self._sums, {}
        sketches, self._sketches = self._sketches, {}
        self._ends.clear()  # addresses come and go
        return apart(Record(MEASUREMENT, self._tags(key, values[3], name_of),
                            self._fields(key, values) | _percentiles(sketches.get(key), values[2]), time_ns)
                     for key, values in sums.items())

    def _told(self, exchange: Exchange, way: _Way) -> _Ends:
        """What is the same for every query on this way, worked out once an interval."""
        netns, client, client_port, server, server_port, *_ = exchange
        direction = "incoming" if self._is_local(netns, server) else (
            "outgoing" if self._is_local(netns, client) else "")
        ends = (client, _starred(client_port), server, _starred(server_port))
        if direction == "incoming":
            ends = (*ends[2:], *ends[:2])
        if len(self._ends) >= _MAX_WAYS:
            self._ends.clear()
        made = self._ends[way] = _Ends(ends, direction, self._fault(client, server, direction))
        return made

    def _fault(self, client: bytes, server: bytes, direction: str) -> str:
        """Why it is in no record; empty if it is."""
        exclude = self._options.exclude
        ends = describe(client), describe(server)
        if any(end.is_zero for end in ends):
            return "address"
        if not self._options.loopback and any(end.type == "loopback" for end in ends):
            return "loopback"
        if not direction:
            return "forwarded"
        if (direction in exclude.directions or PORT in exclude.ports
                or any(cidr.holds(client) or cidr.holds(server) for cidr in exclude.cidrs)
                or (ends[1].family == "IPv6" and not self._options.ipv6)):
            return "excluded"
        return ""

    def _tags(self, key: _Key, netns: int, name_of: NameOf) -> dict[str, str]:
        src, dst = describe(key.local), describe(key.remote)
        name = name_of(netns, key.remote)
        return {
            "host": self._options.host,
            "source": MEASUREMENT,
            "direction": key.direction,
            "src_ip": src.text,
            "src_port": key.src_port,
            "src_ip_type": src.type,
            "dst_ip": dst.text,
            "dst_port": key.dst_port,
            "dst_ip_type": dst.type,
            "transport": "tcp" if key.transport == TCP else "udp",
            "family": dst.family,
            **({"dst_domain": name} if name else {}),
        }

    @staticmethod
    def _fields(key: _Key, sums: list[int]) -> dict[str, FieldValue]:
        count, latency_ns, longest_ns, _ = sums
        fields: dict[str, FieldValue] = {"rcode": key.rcode, "latency": latency_ns // count, "latency_max": longest_ns,
                                         "count": count}
        if key.question is not None:
            fields["query_name"], fields["query_type"] = question_text(key.question)
        return fields


def _percentiles(sketch: DDSketch | None, longest_ns: int) -> dict[str, FieldValue]:
    """Nothing without a sketch. An estimate may be beyond the longest there was, which is known better."""
    fields: dict[str, FieldValue] = {}
    for name, share in _PERCENTILES.items() if sketch else ():
        estimate_ns = sketch.get_quantile_value(share) if sketch else None
        if estimate_ns is not None:
            fields[name] = min(round(estimate_ns), longest_ns)
    return fields


def _sketch() -> DDSketch:
    """Imported here: who wants no percentiles needs no DDSketch. Of latencies up to a timeout it has 1,100 bins."""
    from ddsketch import DDSketch

    return DDSketch(_ACCURACY)


def _starred(port: int) -> str:
    return str(port) if port == PORT else "*"


