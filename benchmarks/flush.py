"""One flush of many flows in a fresh interpreter: aggregated, told of pods, spelled, compressed; ours, or the rival's.

``python -m benchmarks.once flush 200000 pods``; imports no more than a collector does, for its memory is measured.
"""

from __future__ import annotations

import gzip
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from collector.addresses import packed_address
from collector.config import Options
from collector.enrich.domains import Domains
from collector.enrich.kubernetes_cluster import Cluster
from collector.enrich.kubernetes_objects import Owned, Owner, Pod, Service
from collector.enrich.processes import Processes
from collector.enrich.stage import Stage
from collector.flows import FlowDelta, aggregate
from collector.record import Record, to_lines

_MAPPED = bytes(10) + b"\xff\xff"
_REQUEST = 512
_PODS, _NETNS = 5000, 4_026_531_840
_MIB = 1 << 20
# What takes so long is measured on so many.
_OF_RIVAL = 20_000


class _Known:
    """What a Kubernetes knows once everything was listed."""

    is_told = True

    def __init__(self) -> None:
        self._cluster = cluster = Cluster()
        cluster.can_tell_owners.add(("apps", "ReplicaSet"))
        sets = cluster.owned["apps", "ReplicaSet"] = type(cluster.pods)()  # type: ignore[assignment]
        for number in range(_PODS):
            app = f"app-{number // 10}"
            if not number % 10:
                sets.put(Owned(app, Owner(f"d-{app}", app, "Deployment", "apps")))  # type: ignore[arg-type]
                cluster.services.put(Service(f"s-{app}", "shop", f"{app}-front", (f"10.96.{number // 2560}."
                                     f"{number // 10 % 256}",), ((443, "tcp"),), (("app", app),)))
            cluster.pods.put(Pod(f"p-{number}", "shop", f"{app}-{number:x}", (f"10.0.{number >> 8}.{number & 255}",),
                                 False, ((443, "tcp"),), (("app", app),),
                                 Owner(app, f"{app}-5d9", "ReplicaSet", "apps"), (), False, False))
        self.source, self.destination = cluster.source, cluster.destination

    def addresses(self) -> set[bytes]:
        return {packed for text in self._cluster.addresses() if (packed := packed_address(text))}


def deltas(count: int, peers: int) -> Iterator[FlowDelta]:
    """Of as many connections: of 5,000 processes at an address each, with so many peers in turn."""
    for number in range(count):
        pod, peer = number % _PODS, number % peers
        yield FlowDelta(_MAPPED + bytes((10, 0, pod >> 8, pod & 255)), 40_000,
                        _MAPPED + bytes((100, peer >> 16 & 255, peer >> 8 & 255, peer & 255)), 443, "tcp", _NETNS,
                        1000 + pod, "nginx", "outgoing", number, number, 0, 100, 10, 1, 1, 1)


def measured(count: int, pods: bool) -> dict[str, Any]:
    """Seconds of processor of each step, and MiB resident: before, and at most. Every connection is a flow.

    Besides, how long it takes to add up as many connections that are 5,000 flows.
    """
    options, domains, processes = Options("box", max_flows=1 << 21), Domains(), Processes()
    stage = Stage(options, _Known() if pods else None)  # type: ignore[arg-type]
    _learn(domains, processes)
    before = _resident()
    given = _spent(lambda: sum(1 for _ in deltas(count, count)))[0]

    def added_up(peers: int) -> tuple[float, Sequence[Record]]:
        return _spent(lambda: aggregate(
            deltas(count, peers), options, time.time_ns(), name_of=domains.names(),
            process_of=lambda pid, comm: processes.tagged(pid, comm, False)))

    aggregated, records = added_up(count)
    told, records = _spent(lambda: stage.apply(records))
    spelled, written = _spent(lambda: sum(map(len, _requests(records))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    packed, sent = _packed(records)
    merged, few = added_up(1)
    return {"aggregated_s": aggregated - given, "merged_s": merged - given, "merged_flows": len(few),
            "told_s": told, "spelled_s": spelled, "packed_s": packed,
            "records": len(records), "text_mib": written / _MIB, "sent_mib": sent / _MIB, "before_mib": before,
            "peak_mib": peak}


def rival(count: int, pods: bool) -> dict[str, Any]:
    """The same records, as dictionaries, through influxdb-client: only the spelling."""
    from influxdb_client.client.write.point import Point

    stage = Stage(Options("box"), _Known() if pods else None)  # type: ignore[arg-type]
    flows = aggregate(deltas(count, count), Options("box", max_flows=1 << 21), time.time_ns())
    records = stage.apply(flows)[:_OF_RIVAL]
    plain = [{"measurement": one.measurement, "tags": one.tags, "fields": one.fields, "time": one.time}
             for one in records]
    spelled, _ = _spent(lambda: sum(len(Point.from_dict(one).to_line_protocol()) for one in plain))
    return {"spelled_s": spelled * count / len(plain)}


def _learn(domains: Domains, processes: Processes) -> None:
    """As after some intervals: names of a third of the peers that fit, and every process met before."""
    for number in range(0, 1 << 16, 3):
        domains.learn(_NETNS, b"\x02db\x07example\x03org\0\0\1\0\1",
                      [(_MAPPED + bytes((100, 0, number >> 8, number & 255)), 300)])
    domains.name(_NETNS, _MAPPED + bytes((100, 0, 0, 0)))
    for pod in range(_PODS):
        processes.find(1000 + pod, "nginx")


def _requests(records: Sequence[Record]) -> Iterable[bytes]:
    for begin in range(0, len(records), _REQUEST):
        yield "\n".join(to_lines(records[begin:begin + _REQUEST])).encode()


def _packed(records: Sequence[Record]) -> tuple[float, int]:
    """The seconds it takes to compress the requests, and their bytes then."""
    seconds, sent = 0.0, 0
    for body in _requests(records):
        spent, packed = _spent(lambda body=body: gzip.compress(body, 1))
        seconds, sent = seconds + spent, sent + len(packed)
    return seconds, sent


def _spent(work: Any) -> tuple[float, Any]:
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / _MIB
