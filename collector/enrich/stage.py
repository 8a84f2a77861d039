"""The last thing that happens to records before they leave: flows are told whose their ends are in Kubernetes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from collector.config import Options
from collector.enrich.flow_ends import FlowEnds
from collector.enrich.kubernetes import Kubernetes, is_wanted
from collector.enrich.kubernetes_cluster import NOT_KNOWN, End, Workload
from collector.enrich.processes import Processes, container_ids
from collector.flow_records import FlowRecords
from collector.record import Record
from collector.status import ClusterStatus

SUB_SOURCE = "K8s"
_WHAT = ("namespace", "pod_name", "service_name", "deployment_name")
_STRANGER = Workload(NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, NOT_KNOWN)


class Stage:
    """Started with a pipeline and closed with it."""

    def __init__(self, options: Options, kubernetes: Kubernetes | None = None) -> None:
        self.kubernetes = kubernetes
        self._labels = frozenset(options.kubernetes.labels)
        self._processes = Processes()
        if kubernetes is None and is_wanted(options.kubernetes):
            self.kubernetes = Kubernetes(options.kubernetes)

    def apply(self, records: Sequence[Record]) -> Sequence[Record]:
        """The same records in the same order; those with a pod or a service at an end have tags that say so."""
        if self.kubernetes is None or not records or not self.kubernetes.is_told:
            return records
        if isinstance(records, FlowRecords):
            return records.told(FlowEnds(records.flows, self.kubernetes, self._containers, self._both).all())
        known = self.kubernetes
        # Flows of one interval share their ends: each is looked up once, with what was known at its end.
        sources = cache(lambda pid, name, end: known.source(self._containers(pid, name), end))
        destinations = cache(known.destination)
        made = []
        for record in records:
            tags = record.tags
            if "src_ip" not in tags:
                made.append(record)
                continue
            transport = tags["transport"]
            src = sources(_number(tags.get("pid")), tags.get("process_name", ""),
                          End(tags["src_ip"], _number(tags["src_port"]), transport))
            nat = tags.get("dst_nat_ip", NOT_KNOWN)
            translated = None if nat == NOT_KNOWN else End(nat, _number(tags.get("dst_nat_port")), transport)
            dst = destinations(translated, End(tags["dst_ip"], _number(tags["dst_port"]), transport))
            if src or dst:
                record = record._replace(tags={**tags, **self._both(src, dst)})
            made.append(record)
        return made

    def status(self) -> ClusterStatus | None:
        return self.kubernetes.status() if self.kubernetes else None

    def close(self) -> None:
        if self.kubernetes:
            self.kubernetes.close()

    def _containers(self, pid: int, name: str) -> tuple[str, ...]:
        return container_ids(self._processes.find(pid, name).cgroup) if pid else ()

    def _both(self, src: Workload | None, dst: Workload | None) -> dict[str, str]:
        return {"sub_source": SUB_SOURCE, **self._tags("src", src), **self._tags("dst", dst)}

    def _tags(self, side: str, workload: Workload | None) -> dict[str, str]:
        workload = workload or _STRANGER
        tags: dict[str, str] = {f"{side}_k8s_{what}": getattr(workload, what) for what in _WHAT}
        if self._labels:
            tags |= {f"{side}_k8s_label_{key}": value for key, value in workload.labels if key in self._labels}
        return tags


def _number(text: str | None) -> int:
    """0 for a starred port, for a process that is not known, and for none."""
    return int(text) if text and text.isascii() and text.isdigit() else 0

