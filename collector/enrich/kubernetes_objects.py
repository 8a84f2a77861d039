"""What is kept of the API server's objects: the few fields that tell whose an address is, as small as they go."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from sys import intern
from typing import Any, NamedTuple

from collector.addresses import address_text

# An object as the API server writes it, parsed from JSON.
Json = Mapping[str, Any]
# A port and its protocol, as the tag `transport` spells it.
Port = tuple[int, str]
Labels = tuple[tuple[str, str], ...]


class Owner(NamedTuple):
    """Who manages an object."""

    uid: str
    name: str
    kind: str
    group: str


class Pod(NamedTuple):
    """`ended`: its processes are no more, and its address may be another's; `leaving`: that is about to be so."""

    uid: str
    namespace: str
    name: str
    ips: tuple[str, ...]
    host_network: bool
    ports: tuple[Port, ...]
    labels: Labels
    owner: Owner | None
    containers: tuple[str, ...]
    ended: bool
    leaving: bool


class Service(NamedTuple):
    """`selector` is empty where somebody else says what stands behind it."""

    uid: str
    namespace: str
    name: str
    ips: tuple[str, ...]
    ports: tuple[Port, ...]
    selector: Labels


class Slice(NamedTuple):
    """An EndpointSlice: pods of a service, by name."""

    uid: str
    namespace: str
    service: str
    pods: tuple[str, ...]


class Owned(NamedTuple):
    """Of what owns pods, only who owns it in turn."""

    uid: str
    owner: Owner | None


def pod(seen: Json) -> Pod:
    spec, status = _map(seen, "spec"), _map(seen, "status")
    meta = _map(seen, "metadata")
    containers = [*_list(spec, "containers"), *_list(spec, "initContainers")]
    ids = [one.get("containerID") or "" for kind in ("container", "initContainer", "ephemeralContainer")
           for one in _list(status, f"{kind}Statuses")]
    ips = [one.get("ip") for one in _list(status, "podIPs")] or [status.get("podIP")]
    ports = [(one.get("containerPort"), one.get("protocol")) for container in containers
             for one in _list(container, "ports")]
    host_network = spec.get("hostNetwork") is True
    return Pod(_text(meta, "uid"), intern(_text(meta, "namespace")), _text(meta, "name"), _ips(ips), host_network,
               _ports(ports) if host_network else (), _labels(meta.get("labels")), _owner(meta),
               tuple(dict.fromkeys(one.partition("://")[2] for one in ids if "://" in one)),
               status.get("phase") in ("Succeeded", "Failed"), bool(meta.get("deletionTimestamp")))


def service(seen: Json) -> Service:
    meta, spec = _map(seen, "metadata"), _map(seen, "spec")
    ips = spec.get("clusterIPs") or [spec.get("clusterIP")]
    return Service(_text(meta, "uid"), intern(_text(meta, "namespace")), _text(meta, "name"), _ips(ips),
                   _ports((one.get("port"), one.get("protocol")) for one in _list(spec, "ports")),
                   _labels(spec.get("selector")))


def slice_(seen: Json) -> Slice:
    meta = _map(seen, "metadata")
    targets = [_map(one, "targetRef") for one in _list(seen, "endpoints")]
    return Slice(_text(meta, "uid"), intern(_text(meta, "namespace")),
                 str(_map(meta, "labels").get("kubernetes.io/service-name", "")),
                 tuple(_text(one, "name") for one in targets if one.get("kind") == "Pod"))


def owned(seen: Json) -> Owned:
    meta = _map(seen, "metadata")
    return Owned(_text(meta, "uid"), _owner(meta))


def _owner(meta: Json) -> Owner | None:
    """The one that manages it; of several the first where none is said to."""
    owners = _list(meta, "ownerReferences")
    if not owners:
        return None
    one = next((owner for owner in owners if owner.get("controller") is True), owners[0])
    group, slash, _ = _text(one, "apiVersion").partition("/")
    return Owner(intern(_text(one, "uid")), intern(_text(one, "name")), intern(_text(one, "kind")),
                 intern(group if slash else ""))


def _map(of: Json, key: str) -> Json:
    return of.get(key) or {}


def _list(of: Json, key: str) -> list[Json]:
    return of.get(key) or []


def _text(of: Json, key: str) -> str:
    """Empty where the API server says nothing; such an object is told by `uid` and left out."""
    value = of.get(key)
    return value if isinstance(value, str) else ""


def _labels(of: Any) -> Labels:
    return tuple(sorted((intern(key), intern(value)) for key, value in (of or {}).items()))


def _ips(texts: Iterable[Any]) -> tuple[str, ...]:
    """As the tags spell addresses; a headless service's `None` is no address."""
    found: dict[str, None] = {}
    for text in texts:
        if text and text != "None":
            found[address_text(ipaddress.ip_address(text).packed)] = None
    return tuple(found)


def _ports(rows: Iterable[tuple[Any, Any]]) -> tuple[Port, ...]:
    """SCTP and whatever comes after it is in no record."""
    known = {None: "tcp", "TCP": "tcp", "UDP": "udp"}
    return tuple(dict.fromkeys((port, known[protocol]) for port, protocol in rows
                               if isinstance(port, int) and protocol in known))
