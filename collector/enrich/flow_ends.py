"""Whose the ends of packed flows are in Kubernetes: most are nobody's, which one look-up tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from collector.addresses import describe
from collector.enrich.kubernetes import Kubernetes
from collector.enrich.kubernetes_cluster import End, Workload
from collector.packed_flows import (
    HEAD,
    KEY,
    LOCAL,
    LOCAL_ADDRESS,
    NOT_KNOWN,
    REMOTE,
    REMOTE_ADDRESS,
    SOURCE,
    TARGET,
    EndTags,
    PackedFlows,
)

# The number of no target, packed.
_SELF = bytes(4)


# What is known of ends, by all of a key that it depends on; for TCP and for UDP.
_Kept = dict[bytes, Workload | None]


class FlowEnds:
    """`containers` are those of a (pid, name); `tags` are what is said of (source, destination), one of them known."""

    def __init__(self, flows: PackedFlows, known: Kubernetes, containers: Callable[[int, str], tuple[str, ...]],
                 tags: Callable[[Workload | None, Workload | None], Mapping[str, str]]) -> None:
        self._flows, self._known, self._tags = flows, known, tags
        self._containers = [containers(head.pid, head.process_name or NOT_KNOWN) for head in flows.heads]
        # Equal ones are one from here on: then an identity tells them apart.
        self._workloads: dict[Workload, Workload] = {}

    def all(self) -> list[EndTags | None]:
        """One for each flow, None where neither end is known."""
        addresses = self._known.addresses()
        inside = {number.to_bytes(4, "little") for number, containers in enumerate(self._containers) if containers}
        udp = {number.to_bytes(4, "little") for number, head in enumerate(self._flows.heads) if head.transport == "udp"}
        sources: tuple[_Kept, _Kept] = {}, {}
        destinations: tuple[_Kept, _Kept] = {}, {}
        both: dict[tuple[int, int], EndTags] = {}
        found: list[EndTags | None] = []
        for key in self._flows.keys:
            src = dst = None
            head = key[HEAD]
            if head in inside or key[LOCAL_ADDRESS] in addresses:
                end, known = key[SOURCE] if head in inside else key[LOCAL], sources[head in udp]
                src = known[end] if end in known else known.setdefault(end, self._source(key))
            if key[REMOTE_ADDRESS] in addresses or key[TARGET] != _SELF:
                end, known = key[REMOTE], destinations[head in udp]
                dst = known[end] if end in known else known.setdefault(end, self._destination(key))
            if src is None and dst is None:
                found.append(None)
                continue
            pair = id(src), id(dst)
            told = both.get(pair)
            if told is None:
                told = both[pair] = EndTags(self._tags(src, dst))
            found.append(told)
        return found

    def _source(self, key: bytes) -> Workload | None:
        _, _, _, local, port, head = KEY.unpack(key)
        end = End(describe(local).text, port, self._flows.heads[head].transport)
        return self._one(self._known.source(self._containers[head], end))

    def _destination(self, key: bytes) -> Workload | None:
        remote, port, target_number, _, _, head = KEY.unpack(key)
        transport, target = self._flows.heads[head].transport, self._flows.targets[target_number]
        translated = End(describe(target[0]).text, target[1], transport) if target else None
        return self._one(self._known.destination(translated, End(describe(remote).text, port, transport)))

    def _one(self, workload: Workload | None) -> Workload | None:
        return None if workload is None else self._workloads.setdefault(workload, workload)
