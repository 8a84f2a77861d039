"""Whose an address or a container is: what is known of a cluster, and the rules by which it answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from collector.enrich.kubernetes_objects import Labels, Owned, Pod, Service, Slice

NOT_KNOWN = "N/A"
# Owners of owners of pods: custom resources may go deeper than Kubernetes' own two, but hardly in circles.
_DEEPEST = 10


class _Object(Protocol):
    @property
    def uid(self) -> str: ...


T = TypeVar("T", bound=_Object)
_Keys = Callable[[T], Iterable[Hashable]]


class Table(Generic[T]):
    """Objects by their uid, and the uids by every key that `keys` make of one."""

    def __init__(self, **keys: _Keys[T]) -> None:
        self._keys = keys
        self._objects: dict[str, T] = {}
        self._indexes: dict[str, dict[Hashable, set[str]]] = {name: {} for name in keys}

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, uid: str) -> T | None:
        return self._objects.get(uid)

    def find(self, index: str, key: Hashable) -> list[T]:
        return [self._objects[uid] for uid in self._indexes[index].get(key, ())]

    def __iter__(self) -> Iterator[T]:
        return iter(self._objects.values())

    def put(self, one: T) -> None:
        self.drop(one.uid)
        self._objects[one.uid] = one
        for name, keys in self._keys.items():
            for key in keys(one):
                self._indexes[name].setdefault(key, set()).add(one.uid)

    def drop(self, uid: str) -> None:
        one = self._objects.pop(uid, None)
        if one is None:
            return
        for name, keys in self._keys.items():
            index = self._indexes[name]
            for key in keys(one):
                uids = index.get(key)
                if uids is not None:
                    uids.discard(uid)
                    if not uids:
                        del index[key]

    def replace(self, objects: Iterable[T]) -> None:
        """These and no others."""
        kept = {one.uid: one for one in objects}
        for uid in [uid for uid in self._objects if uid not in kept]:
            self.drop(uid)
        for uid, one in kept.items():
            if self._objects.get(uid) != one:
                self.put(one)


class Workload(NamedTuple):
    """What stands at one end of a flow."""

    namespace: str
    pod_name: str
    service_name: str
    deployment_name: str
    labels: Labels = ()


class End(NamedTuple):
    """One end of a flow; port 0 where it is starred or there is none."""

    ip: str
    port: int
    transport: str


class Cluster:
    """What lists and watches said. `can_tell_owners` are the (group, kind)s of which all are known."""

    def __init__(self) -> None:
        self.pods: Table[Pod] = Table(
            ip=lambda pod: () if pod.host_network or pod.ended else pod.ips,
            host_port=lambda pod: () if pod.ended else [(ip, *port) for ip in pod.ips for port in pod.ports],
            container=lambda pod: pod.containers)
        # A service is found by the first of what it selects by, so that a pod asks few services and not all.
        self.services: Table[Service] = Table(
            end=lambda one: [(ip, *port) for ip in one.ips for port in one.ports],
            selects=lambda one: [(one.namespace, one.selector[0])] if one.selector else (),
            name=lambda one: [(one.namespace, one.name)])
        self.slices: Table[Slice] = Table(pod=lambda one: [(one.namespace, name) for name in one.pods])
        self.owned: dict[tuple[str, str], Table[Owned]] = {}
        self.can_tell_owners: set[tuple[str, str]] = set()

    def addresses(self) -> set[str]:
        """Every one that may be somebody's: where neither address nor container is known, nobody needs be asked."""
        found = [ip for one in self.pods if not one.ended for ip in one.ips]
        return {*found, *(ip for one in self.services for ip in one.ips)}

    def source(self, containers: Sequence[str], end: End) -> Workload | None:
        """By the process's container, then by address.

        A process id may have become another's since. So where the address is a second pod's own, that one counts.
        """
        inside = self._only([pod for one in containers for pod in self.pods.find("container", one)])
        by_address = self._pod_at(end)
        if inside and (by_address is None or by_address.uid == inside.uid or end.ip in inside.ips):
            return self._of_pod(inside)
        return self._of_pod(by_address) if by_address else self._service_at(end)

    def destination(self, translated: End | None, end: End) -> Workload | None:
        """By the address that NAT leads to, then the one the process knows, then as a service's."""
        pod = (self._pod_at(translated) if translated else None) or self._pod_at(end)
        return self._of_pod(pod) if pod else self._service_at(end)

    def _pod_at(self, end: End) -> Pod | None:
        """A pod of the host's network has the node's address, which is many others' too: its ports must tell."""
        return self._only(self.pods.find("ip", end.ip)) or self._only(self.pods.find("host_port", tuple(end)))

    @staticmethod
    def _only(pods: list[Pod]) -> Pod | None:
        """The one; where an address passes from one to the next, that which stays. None where nobody can tell."""
        pods = list(dict.fromkeys(pods))
        if len(pods) > 1:
            pods = [pod for pod in pods if not pod.leaving]
        return pods[0] if len(pods) == 1 else None

    def _service_at(self, end: End) -> Workload | None:
        found = self.services.find("end", tuple(end))
        if len(found) != 1:
            return None
        return Workload(found[0].namespace, NOT_KNOWN, found[0].name, NOT_KNOWN)

    def _of_pod(self, pod: Pod) -> Workload:
        return Workload(pod.namespace, pod.name, min(self._services_of(pod), default=NOT_KNOWN), self._top_owner(pod),
                        pod.labels)

    def _services_of(self, pod: Pod) -> set[str]:
        """By selector; where a service has none, by what its endpoints say."""
        labels = set(pod.labels)
        names = {one.name for label in pod.labels for one in self.services.find("selects", (pod.namespace, label))
                 if labels.issuperset(one.selector)}
        for one in self.slices.find("pod", (pod.namespace, pod.name)):
            if any(not service.selector for service in self.services.find("name", (one.namespace, one.service))):
                names.add(one.service)
        return names

    def _top_owner(self, pod: Pod) -> str:
        """N/A where who owns an owner cannot be told: a ReplicaSet's name in a Deployment's place would be wrong."""
        owner, name = pod.owner, pod.name
        for _ in range(_DEEPEST):
            if owner is None:
                return name
            name, kind = owner.name, (owner.group, owner.kind)
            if kind not in self.owned:
                return name
            above = self.owned[kind].get(owner.uid)
            if above is None or kind not in self.can_tell_owners:
                return NOT_KNOWN
            owner = above.owner
        return NOT_KNOWN
