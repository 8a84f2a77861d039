"""Pods and services of the cluster this machine is a node of, kept up to date by threads of their own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from collector.addresses import packed_address
from collector.config import KubernetesOptions
from collector.enrich import kubernetes_objects as objects
from collector.enrich.kubernetes_cluster import Cluster, End, Table, Workload
from collector.enrich.kubernetes_watch import Answer, Fetch, Gone, Refused, Watcher
from collector.status import ClusterStatus, KindStatus
from kcompat.errors import Missing

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

log = logging.getLogger(__name__)

# So long after the last word of the API server its addresses are still believed: then they may be others'.
TRUSTED_S = 900.0
_CLOSE_S = 2.0
# Of what owns pods nothing but the owner's owner is asked for; servers from 1.15 on leave out the rest.
_METADATA = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json"}
_WATCHED_METADATA = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json"}


class _Kind(NamedTuple):
    """A row: how the client lists it, and what is kept. `group` and `kind` as owner references have them."""

    name: str
    api: str
    method: str
    strip: Callable[[objects.Json], Any]
    group: str = ""
    kind: str = ""


_KINDS = (
    _Kind("pods", "CoreV1Api", "list_pod_for_all_namespaces", objects.pod),
    _Kind("services", "CoreV1Api", "list_service_for_all_namespaces", objects.service),
    _Kind("endpointslices", "DiscoveryV1Api", "list_endpoint_slice_for_all_namespaces", objects.slice_),
    _Kind("replicasets", "AppsV1Api", "list_replica_set_for_all_namespaces", objects.owned, "apps", "ReplicaSet"),
    _Kind("deployments", "AppsV1Api", "list_deployment_for_all_namespaces", objects.owned, "apps", "Deployment"),
    _Kind("statefulsets", "AppsV1Api", "list_stateful_set_for_all_namespaces", objects.owned, "apps", "StatefulSet"),
    _Kind("daemonsets", "AppsV1Api", "list_daemon_set_for_all_namespaces", objects.owned, "apps", "DaemonSet"),
    _Kind("jobs", "BatchV1Api", "list_job_for_all_namespaces", objects.owned, "batch", "Job"),
)
# Without these nothing is said at all: half a cluster would call its other half strangers.
_NEEDED = ("pods", "services")


class Kubernetes:
    """Answers whose an end of a flow is, from memory alone: the API server is never waited for."""

    def __init__(self, options: KubernetesOptions, client: ApiClient | None = None) -> None:
        """`client` is otherwise made where it cannot hold up anybody."""
        self._options = options
        self._client = client
        self._cluster = Cluster()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._heard_s: dict[str, float] = {}
        self._listed: set[str] = set()
        self._in_a_row: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        """What went wrong so far, by kind of object."""
        self.watchers: list[Watcher[Any]] = []
        self._warned = self._is_told = False
        self._error = ""
        self._open: dict[str, Answer] = {}
        self._threads = [threading.Thread(target=self._begin, name="kubernetes", daemon=True)]
        self._threads[0].start()

    def source(self, containers: Sequence[str], end: End) -> Workload | None:
        with self._lock:
            return self._cluster.source(containers, end)

    def destination(self, translated: End | None, end: End) -> Workload | None:
        with self._lock:
            return self._cluster.destination(translated, end)

    def addresses(self) -> set[bytes]:
        """Of pods and services, 16 bytes each, v4-mapped for IPv4."""
        with self._lock:
            texts = self._cluster.addresses()
        return {packed for text in texts if (packed := packed_address(text))}

    @property
    def is_told(self) -> bool:
        """Whether enough is known, and late enough, to say of an address that it is a pod's, or that it is none's."""
        if not self._listed.issuperset(_NEEDED):
            return False
        silent_s = time.monotonic() - min(self._heard_s[name] for name in _NEEDED)
        if silent_s > TRUSTED_S and self._is_told:
            log.warning("kubernetes: nothing was heard of pods and services for %.0f s: their tags are left out",
                        silent_s)
        self._is_told = silent_s <= TRUSTED_S
        return self._is_told

    def status(self) -> ClusterStatus:
        now_s = time.monotonic()
        with self._lock:
            objects = {"pods": len(self._cluster.pods), "services": len(self._cluster.services),
                       "endpointslices": len(self._cluster.slices),
                       **{row.name: len(self._cluster.owned.get((row.group, row.kind), ()))
                          for row in _KINDS if row.kind}}
        kinds = tuple(KindStatus(row.name, objects[row.name], row.name in self._listed,
                                 round(now_s - self._heard_s[row.name], 1) if row.name in self._heard_s else None,
                                 self.failures[row.name]) for row in _KINDS)
        return ClusterStatus(self._client.configuration.host if self._client else "", self.is_told,
                             self.failures["client"], self._error, kinds)

    def close(self) -> None:
        """A thread that the API server keeps waiting is left behind: it holds nothing but a connection."""
        self._stop.set()
        for answer in list(self._open.values()):
            try:
                answer.shutdown()
            except Exception as error:
                log.debug("kubernetes: a watch had ended: %s", error)
        until_s = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def _begin(self) -> None:
        """Here, because the client takes a second to import, and a kubeconfig may run a command for its token."""
        pause_s = 1.0
        while not self._stop.is_set():
            try:
                if self._client is None:
                    self._client = connect(self._options)
                self._in_a_row["client"] = 0
                self._follow(self._client)
                return
            except Exception as error:
                self._failed("client", str(error) or type(error).__name__)
                if isinstance(error, Missing):
                    return
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, 300.0)

    def _follow(self, client: ApiClient) -> None:
        tables: dict[str, Table[Any]] = {"pods": self._cluster.pods, "services": self._cluster.services,
                                         "endpointslices": self._cluster.slices}
        for row in _KINDS:
            if row.kind:
                tables[row.name] = self._cluster.owned[row.group, row.kind] = Table()
            self.watchers.append(Watcher(row.name, self._fetch(client, row), row.strip,
                                         _Locked(tables[row.name], self._lock), stop=self._stop, heard=self._heard,
                                         failed=self._failed, resync_s=self._options.resync_s))
        # Only what tells where they are is written by several threads, a kind by one.
        more = [threading.Thread(target=one.run, name=f"kubernetes-{one.name}", daemon=True) for one in self.watchers]
        for thread in more:
            thread.start()
        self._threads += more

    def _fetch(self, client: ApiClient, row: _Kind) -> Fetch:
        from kubernetes import client as api
        from kubernetes.client.exceptions import ApiException

        method = getattr(getattr(api, row.api)(client), row.method)

        def fetch(parameters: Mapping[str, Any], timeout_s: tuple[float, float]) -> Answer:
            extra = {"_headers": _WATCHED_METADATA if parameters.get("watch") else _METADATA} if row.kind else {}
            try:
                answer: Answer = method(**parameters, **extra, _preload_content=False, _request_timeout=timeout_s)
            except ApiException as error:
                if error.status == 410:
                    raise Gone from None
                raise Refused(error.status or 0, error.reason or "") from None
            self._open[row.name] = answer
            return answer

        return fetch

    def _heard(self, name: str, is_whole: bool) -> None:
        self._heard_s[name] = time.monotonic()
        if not is_whole:
            return
        self._in_a_row[name] = 0
        if name in self._listed:
            if self._warned and not any(self._in_a_row.values()):
                self._warned = False
                log.warning("kubernetes: the API server answers again")
            return
        self._listed.add(name)
        row = next(row for row in _KINDS if row.name == name)
        if row.kind:
            self._cluster.can_tell_owners.add((row.group, row.kind))

    def _failed(self, name: str, words: str) -> None:
        """One warning for all. That a watch is cut is no news: only that it cannot be begun again is."""
        self.failures[name] += 1
        self._error = f"{name}: {words}"
        self._in_a_row[name] += 1
        if not self._warned and (name not in self._listed or self._in_a_row[name] > 1):
            self._warned = True
            server = f" of {self._client.configuration.host}" if self._client else ""
            log.warning("kubernetes: no %s%s: %s; what they tell is left out of records until they come", name, server,
                        words)
        else:
            log.debug("kubernetes %s: %s", name, words)


class _Locked:
    """A table that another thread reads: it sees a list whole or not at all."""

    def __init__(self, table: Table[Any], lock: threading.Lock) -> None:
        self._table, self._lock = table, lock

    def replace(self, objects: list[Any]) -> None:
        with self._lock:
            self._table.replace(objects)

    def put(self, one: Any) -> None:
        with self._lock:
            self._table.put(one)

    def drop(self, uid: str) -> None:
        with self._lock:
            self._table.drop(uid)


def is_wanted(options: KubernetesOptions) -> bool:
    """auto: in a pod, or where a kubeconfig was named."""
    if options.enabled == "auto":
        return options.kubeconfig is not None or in_cluster()
    return options.enabled == "on"


def in_cluster() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def connect(options: KubernetesOptions) -> ApiClient:
    """The official client, as a kubeconfig or the pod's service account says. Raises Missing where there is neither.

    A server whose certificate cannot be verified is not talked to.
    """
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise Missing("its client is not installed: pip install 'kcompat[k8s]'") from error

    settings = client.Configuration()
    if options.kubeconfig is None and in_cluster():
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    else:
        path = options.kubeconfig or Path(os.environ.get("KUBECONFIG") or "~/.kube/config").expanduser()
        if not path.exists():
            raise Missing(f"there is no {path}, and this is no pod")
        config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(path), client_configuration=settings, persist_config=False)
    if not settings.verify_ssl:
        log.warning("kubernetes: insecure-skip-tls-verify is not heeded: the API server's certificate is verified")
        settings.verify_ssl = True
    settings.retries = False
    return client.ApiClient(settings)
