"""What sockets did since the last flush, merged into netflow records: one per flow key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from collector.addresses import Address, describe, star_ports
from collector.config import Options
from collector.record import Record

MEASUREMENT = "netflow"
NOT_KNOWN = "N/A"
# The tags only an enricher can know; until one does, they are absent (`dst_nat_*` and `process_name` are N/A instead).
ENRICHER_TAGS = (
    "dst_domain",
    "sub_source",
    *(f"{side}_k8s_{what}" for side in ("src", "dst")
      for what in ("namespace", "pod_name", "service_name", "deployment_name")),
)


class FlowDelta(NamedTuple):
    """What one socket did with one peer since the last flush.

    Or what several sockets did that look alike outside: `rtt_us` and `rtt_var_us` are sums over the `rtt_samples`
    sockets that had a sample. Addresses are 16 bytes, v4-mapped for IPv4. UDP leaves everything after
    `bytes_written` 0.
    """

    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    transport: str
    netns: int
    pid: int
    process_name: str
    direction: str
    bytes_read: int
    bytes_written: int
    retransmits: int = 0
    rtt_us: int = 0
    rtt_var_us: int = 0
    rtt_samples: int = 0
    established: int = 0
    closed: int = 0


# Where an outgoing connection really went, address (16 bytes) and port, where that is not `remote`.
Target = tuple[bytes, int]
# The key of a flow: local, src_port, remote, dst_port, transport, netns, pid, process_name, direction, target. The
# netns is in no tag, yet two namespaces never make one flow. A bare tuple: this is what 200,000 sockets go through.
_Key = tuple[bytes, str, bytes, str, str, int, int, str, str, Target | None]
# Sums of one flow: read, written, retransmits, established, closed, rtt, rtt_var, sockets with an rtt sample.
_Sums = list[int]


# The name behind (netns, 16-byte address), if any is known.
NameOf = Callable[[int, bytes], str | None]
# Who a (pid, comm) is, and the tags that come with it.
ProcessOf = Callable[[int, str], tuple[str, Mapping[str, str]]]
# The target of a connection: (netns, transport, local, local port, remote, remote port).
TargetOf = Callable[[int, str, bytes, int, bytes, int], Target | None]


def aggregate(deltas: Iterable[FlowDelta], options: Options, time_ns: int,
              dropped: Counter[str] | None = None, name_of: NameOf | None = None, target_of: TargetOf | None = None,
              process_of: ProcessOf | None = None) -> list[Record]:
    """One netflow record per flow key, all stamped `time_ns`.

    `name_of` fills `dst_domain`, `target_of` the `dst_nat_*`; `process_of` has the last word on `process_name`.

    `dropped`, if given, is added to: deltas left out per reason (`unchanged`, `port`, `address`, `loopback`,
    `excluded`, `overflow`). Only `overflow` is a loss: flows past `options.max_flows`, in the order they came.
    """
    lost: Counter[str] = Counter() if dropped is None else dropped
    ends = _Ends(options)
    exclude, ephemeral_port, max_flows = options.exclude, options.ephemeral_port, options.max_flows
    flows: dict[_Key, _Sums] = {}
    who = _Who(process_of)
    for (local, local_port, remote, remote_port, transport, netns, pid, process_name, direction,
         read, written, retransmits, rtt_us, rtt_var_us, rtt_samples, established, closed) in deltas:
        if not (read or written or (transport == "tcp" and (retransmits or established or closed))):
            lost["unchanged"] += 1
            continue
        if not local_port or not remote_port:
            lost["port"] += 1
            continue
        fault = ends[local][1] or ends[remote][1]
        if fault:
            lost[fault] += 1
            continue
        process_name = who[pid, process_name]
        if (local_port in exclude.ports or remote_port in exclude.ports or process_name in exclude.processes
                or direction in exclude.directions):
            lost["excluded"] += 1
            continue
        src_port, dst_port = star_ports(local_port, remote_port, direction, ephemeral_port)
        target = (target_of(netns, transport, local, local_port, remote, remote_port)
                  if target_of and direction == "outgoing" else None)
        key = (local, src_port, remote, dst_port, transport, netns, pid, process_name, direction, target)
        sums = flows.get(key)
        if sums is None:
            if len(flows) >= max_flows:
                lost["overflow"] += 1
                continue
            sums = flows[key] = [0, 0, 0, 0, 0, 0, 0, 0]
        sums[0] += read
        sums[1] += written
        if transport == "tcp":
            sums[2] += retransmits
            sums[3] += established
            sums[4] += closed
            sums[5] += rtt_us
            sums[6] += rtt_var_us
            sums[7] += rtt_samples
    return [Record(MEASUREMENT, {**_tags(key, ends, options.host, name_of), **who.tags.get(key[6:8], {})},
                   _fields(key[4], sums), time_ns) for key, sums in flows.items()]


class _Who(dict[tuple[int, str], str]):
    """(pid, comm) to the process's name; `tags` are what else is said of (pid, name). Asked once each."""

    def __init__(self, process_of: ProcessOf | None) -> None:
        super().__init__()
        self.tags: dict[tuple[int, str], Mapping[str, str]] = {}
        self._process_of = process_of

    def __missing__(self, key: tuple[int, str]) -> str:
        name = key[1]
        if self._process_of:
            name, tags = self._process_of(*key)
            if tags:
                self.tags[key[0], name] = tags
        self[key] = name
        return name


class _Ends(dict[bytes, tuple[Address, str]]):
    """Address to its description and why flows with it are left out ("" if they are not), worked out once each."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options

    def __missing__(self, raw: bytes) -> tuple[Address, str]:
        address = describe(raw)
        fault = ""
        if address.is_zero:
            fault = "address"
        elif address.type == "loopback" and not self._options.loopback:
            fault = "loopback"
        elif (any(cidr.holds(raw) for cidr in self._options.exclude.cidrs)
              or (address.family == "IPv6" and not self._options.ipv6)):
            fault = "excluded"
        end = self[raw] = address, fault
        return end


def _tags(key: _Key, ends: _Ends, host: str, name_of: NameOf | None) -> dict[str, str]:
    local, src_port, remote, dst_port, transport, netns, pid, process_name, direction, target = key
    src, dst = ends[local][0], ends[remote][0]
    name = name_of(netns, remote) if name_of else None
    return {
        "host": host,
        "source": MEASUREMENT,
        "direction": direction,
        "src_ip": src.text,
        "src_port": src_port,
        "src_ip_type": src.type,
        "dst_ip": dst.text,
        "dst_port": dst_port,
        "dst_ip_type": dst.type,
        "dst_nat_ip": describe(target[0]).text if target else NOT_KNOWN,
        "dst_nat_port": str(target[1]) if target else NOT_KNOWN,
        "pid": str(pid),
        "process_name": process_name or NOT_KNOWN,
        "transport": transport,
        "family": dst.family,
        **({"dst_domain": name} if name else {}),
    }


def _fields(transport: str, sums: _Sums) -> dict[str, int]:
    read, written, retransmits, established, closed, rtt, rtt_var, samples = sums
    if transport != "tcp":
        return {"bytes_read": read, "bytes_written": written}
    return {
        "bytes_read": read,
        "bytes_written": written,
        "retransmits": retransmits,
        # 0 where no socket of the flow had a sample, as no measured rtt is.
        "rtt": rtt // samples if samples else 0,
        "rtt_var": rtt_var // samples if samples else 0,
        "tcp_closed": closed,
        "tcp_established": established,
    }
