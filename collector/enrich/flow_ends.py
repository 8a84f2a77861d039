"""Whose the ends of packed flows are in Kubernetes: most are nobody's, which one look-up tells."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import cache

from collector.addresses import describe
from collector.enrich.kubernetes import Kubernetes
from collector.enrich.kubernetes_cluster import End, Workload
from collector.packed_flows import NOT_KNOWN, SOURCE, EndTags, PackedFlows, Told

# Of a KEY what tells whether anything may be known: target and remote address.
_ROW = struct.Struct("<2xI16s4x")


class FlowEnds:
    """`containers` are those of a (pid, name); `tags` are what is said of (source, destination), one of them known."""

    def __init__(self, flows: PackedFlows, known: Kubernetes, containers: Callable[[int, str], tuple[str, ...]],
                 tags: Callable[[Workload | None, Workload | None], Mapping[str, str]]) -> None:
        self._flows, self._known, self._tags = flows, known, tags
        self._containers = [containers(head.pid, head.process_name or NOT_KNOWN) for head in flows.heads]
        self._addresses = known.addresses()
        # Equal ones are one from here on: then an identity tells them apart.
        self._workloads: dict[Workload, Workload] = {}
        self._both: dict[tuple[int, int], EndTags] = {}

    def all(self) -> Told:
        sources = [self._source(*source) for source in SOURCE.iter_unpack(self._flows.sources)]
        addresses, everyone = self._addresses, range(len(self._flows.names))
        found = [number for number, (target, remote) in enumerate(self._flows.rows(everyone, _ROW))
                 if target or remote in addresses]
        destination = cache(self._destination)
        of_flows = {}
        for number in found:
            port, target, remote, source = next(self._flows.rows(range(number, number + 1)))
            transport = self._flows.heads[self._flows.source(source)[2]].transport
            if dst := destination(remote, port, target, transport):
                of_flows[number] = self._tagged(sources[source], dst)
        return Told(of_flows, [self._tagged(src, None) if src else None for src in sources])

    def _tagged(self, src: Workload | None, dst: Workload | None) -> EndTags:
        pair = id(src), id(dst)
        told = self._both.get(pair)
        if told is None:
            told = self._both[pair] = EndTags(self._tags(src, dst))
        return told

    def _source(self, local: bytes, port: int, head: int) -> Workload | None:
        if not self._containers[head] and local not in self._addresses:
            return None
        end = End(describe(local).text, port, self._flows.heads[head].transport)
        return self._one(self._known.source(self._containers[head], end))

    def _destination(self, remote: bytes, port: int, target_number: int, transport: str) -> Workload | None:
        target = self._flows.targets[target_number]
        translated = End(describe(target[0]).text, target[1], transport) if target else None
        return self._one(self._known.destination(translated, End(describe(remote).text, port, transport)))

    def _one(self, workload: Workload | None) -> Workload | None:
        return None if workload is None else self._workloads.setdefault(workload, workload)
