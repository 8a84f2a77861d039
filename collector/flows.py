"""What sockets did since the last flush, merged into netflow records: one per flow key."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from collector.addresses import V4_MAPPED, address_type, reduce_mapped
from collector.config import Options
from collector.flow_records import FlowRecords
from collector.packed_flows import KEY, SOURCE, SUMS, Head, PackedFlows, Target

# So much is kept of a kind while deltas are gone through: the next ones often share it.
_KEPT = 1 << 14
# So many bytes say of nearly every address that nothing is wrong with it: IPv4's but for 0.0.0.0 and 127/8, IPv6's but
# for those that begin with zeros.
_BEGINNING = len(V4_MAPPED) + 1
_ODD = (0, 127)
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


# The name behind (netns, 16-byte address), if any is known.
NameOf = Callable[[int, bytes], str | None]
# Who a (pid, comm) is, and the tags that come with it.
ProcessOf = Callable[[int, str], tuple[str, Mapping[str, str]]]
# The target of a connection: (netns, transport, local, local port, remote, remote port).
TargetOf = Callable[[int, str, bytes, int, bytes, int], Target | None]


def aggregate(deltas: Iterable[FlowDelta], options: Options, time_ns: int,
              dropped: Counter[str] | None = None, name_of: NameOf | None = None, target_of: TargetOf | None = None,
              process_of: ProcessOf | None = None) -> FlowRecords:
    """One netflow record per flow key, all stamped `time_ns`.

    `name_of` fills `dst_domain`, `target_of` the `dst_nat_*`; `process_of` has the last word on `process_name`.

    `dropped`, if given, is added to: deltas left out per reason (`unchanged`, `port`, `address`, `loopback`,
    `excluded`, `overflow`). Only `overflow` is a loss: flows past `options.max_flows`, in the order they came.
    """
    lost: Counter[str] = Counter() if dropped is None else dropped
    flows = PackedFlows(options.host, time_ns)
    faults = _Faults(options)
    beginning = faults.beginning
    heads, targets = _Heads(flows, options, process_of), _Targets(flows)
    sources = _Sources(flows, faults, heads)
    ports, ephemeral_port, max_flows = options.exclude.ports, options.ephemeral_port, options.max_flows
    numbers: dict[bytes, int] = {}
    count, number_of = 0, numbers.setdefault
    keys, sums, append_name = flows.keys, flows.sums, flows.names.append
    pack_key, pack_sums = KEY.pack, SUMS.pack
    for (local, local_port, remote, remote_port, transport, netns, pid, comm, direction,
         read, written, retransmits, rtt_us, rtt_var_us, rtt_samples, established, closed) in deltas:
        if transport != "tcp":
            retransmits = established = closed = rtt_us = rtt_var_us = rtt_samples = 0
        if not (read or written or retransmits or established or closed):
            lost["unchanged"] += 1
            continue
        if not local_port or not remote_port:
            lost["port"] += 1
            continue
        if faults[remote[beginning]] and (fault := faults.of(local) or faults.of(remote)):
            lost[fault] += 1
            continue
        src_port, dst_port = local_port, remote_port
        if direction == "outgoing":
            if local_port >= ephemeral_port:
                src_port = 0
        elif remote_port >= ephemeral_port:
            dst_port = 0
        source = sources[transport, direction, netns, pid, comm, local, src_port]
        if source < 0 or (ports and (local_port in ports or remote_port in ports)):
            lost[faults.of(local) or "excluded"] += 1
            continue
        target = 0
        if (target_of and direction == "outgoing"
                and (found := target_of(netns, transport, local, local_port, remote, remote_port))):
            target = targets[found]
        number = number_of(key := pack_key(dst_port, target, remote, source), count)
        if number == count:
            if count >= max_flows:
                del numbers[key]
                lost["overflow"] += 1
                continue
            count += 1
            keys += key
            append_name(name_of(netns, remote) if name_of else None)
            try:
                sums += pack_sums(read, written, retransmits, established, closed, rtt_us, rtt_var_us, rtt_samples)
                continue
            except struct.error:
                sums += bytes(SUMS.size)
        flows.add(number, (read, written, retransmits, established, closed, rtt_us, rtt_var_us, rtt_samples))
    heads.complete()
    return FlowRecords(flows)


class _Faults(dict[bytes, str]):
    """How an address begins to why flows with it may be left out, which `of` tells; "" if none that begins so is."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options, self._cidrs = options, options.exclude.cidrs
        # Where networks are excluded the whole address is asked for, else what most can be told by.
        self.beginning = slice(16 if self._cidrs else _BEGINNING)

    def __missing__(self, beginning: bytes) -> str:
        if len(self) >= _KEPT:
            self.clear()
        if len(beginning) > _BEGINNING:
            fault = self._look(beginning)
        elif beginning.startswith(V4_MAPPED):
            fault = "address or loopback" if beginning[-1] in _ODD else ""
        else:
            fault = "excluded" if not self._options.ipv6 else "" if any(beginning) else "address or loopback"
        self[beginning] = fault
        return fault

    def of(self, raw: bytes) -> str:
        return self[raw[self.beginning]] and self._look(raw)

    def _look(self, raw: bytes) -> str:
        packed = reduce_mapped(raw)
        if not any(packed):
            return "address"
        if not self._options.loopback and address_type(packed) == "loopback":
            return "loopback"
        if any(cidr.holds(raw) for cidr in self._cidrs) or (len(packed) != 4 and not self._options.ipv6):
            return "excluded"
        return ""


class _Sources(dict[tuple[str, str, int, int, str, bytes, int], int]):
    """(transport, direction, netns, pid, comm, local, port) to the number of that source; -1 if its flows are left out.

    Forgotten when there are many: they are found again by what they are.
    """

    def __init__(self, flows: PackedFlows, faults: _Faults, heads: _Heads) -> None:
        super().__init__()
        self._flows, self._faults, self._heads = flows, faults, heads
        self._numbers: dict[bytes, int] = {}

    def __missing__(self, key: tuple[str, str, int, int, str, bytes, int]) -> int:
        if len(self) >= _KEPT:
            self.clear()
        transport, direction, netns, pid, comm, local, port = key
        number = -1
        if not self._faults.of(local) and (head := self._heads[netns, transport, direction, pid, comm]) >= 0:
            source, count = SOURCE.pack(local, port, head), len(self._numbers)
            number = self._numbers.setdefault(source, count)
            if number == count:
                self._flows.sources += source
        self[key] = number
        return number


class _Heads(dict[tuple[int, str, str, int, str], int]):
    """(netns, transport, direction, pid, comm) to the number of that head; -1 if its flows are left out."""

    def __init__(self, flows: PackedFlows, options: Options, process_of: ProcessOf | None) -> None:
        super().__init__()
        self._flows, self._exclude, self._process_of = flows, options.exclude, process_of
        self._processes: dict[tuple[int, str], tuple[str, Mapping[str, str]]] = {}
        self._numbers: dict[tuple[int, str, str, int, str], int] = {}

    def __missing__(self, key: tuple[int, str, str, int, str]) -> int:
        netns, transport, direction, pid, comm = key
        name, more = self._process(pid, comm)
        number = -1
        if name not in self._exclude.processes and direction not in self._exclude.directions:
            heads = self._flows.heads
            number = self._numbers.setdefault((netns, transport, direction, pid, name), len(heads))
            if number == len(heads):
                heads.append(Head(netns, transport, direction, pid, name, more))
        self[key] = number
        return number

    def _process(self, pid: int, comm: str) -> tuple[str, Mapping[str, str]]:
        """Asked once each: threads of one process may have names of their own."""
        known = self._processes.get((pid, comm))
        if known is None:
            known = self._processes[pid, comm] = self._process_of(pid, comm) if self._process_of else (comm, {})
        return known

    def complete(self) -> None:
        """What is said of one name of a process goes for all that lead to it."""
        more = {(pid, name): tags for (pid, _), (name, tags) in self._processes.items() if tags}
        if more:
            self._flows.heads[:] = [head._replace(more=more.get((head.pid, head.process_name), {}))
                                    for head in self._flows.heads]


class _Targets(dict[Target, int]):
    """Targets to their numbers."""

    def __init__(self, flows: PackedFlows) -> None:
        super().__init__()
        self._flows = flows

    def __missing__(self, target: Target) -> int:
        self[target] = number = len(self._flows.targets)
        self._flows.targets.append(target)
        return number
