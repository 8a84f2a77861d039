"""Packed flows come out as plain ones do: the same records, the same lines, whoever asks, in slices too."""

import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.config import KubernetesOptions, Options
from collector.enrich.kubernetes_cluster import Cluster
from collector.enrich.kubernetes_objects import Pod, Service
from collector.enrich.stage import Stage
from collector.exclusions import Exclusions
from collector.flows import FlowDelta, aggregate
from collector.record import tagged, to_json, to_lines
from tests.collector import plain_flows
from tests.collector.wire import packed

POD, HOSTED, OTHER = "10.0.0.1", "10.0.0.9", "2001:db8::7"
ADDRESSES = [POD, "10.0.0.2", HOSTED, OTHER, "127.0.0.1", "0.0.0.0", "0.0.0.7", "8.8.8.8", "8.8.4.4", "::1", "::2",
             "::", "2001:db8::1:7", "10.96.0.1", "224.0.0.1"]
CONTAINER = "c" * 64
addresses = st.sampled_from(ADDRESSES).map(packed)
ports = st.sampled_from([0, 22, 53, 443, 32768, 40000])
counts = st.sampled_from([0, 1, 1500, 2**40, 2**62, 2**63, -1])
deltas = st.lists(st.builds(
    FlowDelta, addresses, ports, addresses, ports, st.sampled_from(["tcp", "udp"]), st.integers(1, 2),
    st.integers(0, 2), st.sampled_from(["", "curl", "a b,c=%d", "thread"]), st.sampled_from(["incoming", "outgoing"]),
    counts, counts, counts, counts, counts, st.integers(0, 2), counts, counts), max_size=40)
options = st.builds(
    Options, st.just("web 1%"), exclude=st.lists(st.sampled_from(
        ["cidr=8.0.0.0/8", "port=22", "process=curl", "direction=incoming"]), max_size=1).map(Exclusions.parse),
    max_flows=st.sampled_from([3, 1000]), loopback=st.booleans(), ipv6=st.booleans(),
    ephemeral_port=st.sampled_from([0, 32768]))
# Among them names that fall between others, names of tags that records have or may have, and some of no spelling.
tags = st.dictionaries(st.sampled_from(["a", "dst_ipx", "dst_host", "env", "src_k", "z z", "dst_domain", "pid",
                                        "source_%s", ""]), st.sampled_from(["v", "%d v", "", "\\"]), max_size=3)


def name_of(netns, address):
    return {(1, packed("8.8.8.8")): "dns.google", (2, packed(POD)): "web, 100%"}.get((netns, address))


def target_of(netns, transport, local, local_port, remote, remote_port):
    return (packed(POD), 8080) if remote == packed("10.96.0.1") and transport == "tcp" else None


def process_of(pid, comm):
    return ("curl" if comm == "thread" else comm), {"cgroup": "/x", "container_id": comm or "N/A"} if pid == 1 else {}


class Known:
    """A cluster of a pod, a pod of the host's network, and a service, that says all it knows."""

    is_told = True

    def __init__(self):
        self._cluster = Cluster()
        web = Pod("1", "shop", "web-1", (POD,), False, (), (("app", "web, %s"),), None, (CONTAINER,), False, False)
        self._cluster.pods.put(web)
        self._cluster.pods.put(web._replace(uid="2", name="dns-1", ips=(HOSTED, OTHER), host_network=True,
                                            ports=((53, "udp"), (443, "tcp")), labels=(), containers=()))
        self._cluster.services.put(Service("3", "shop", "front", ("10.96.0.1",), ((443, "tcp"),), web.labels))
        self.source, self.destination = self._cluster.source, self._cluster.destination

    def addresses(self):
        return set(map(packed, self._cluster.addresses()))


class InContainers(Stage):
    def _containers(self, pid, name):
        return (CONTAINER,) if (pid, name) == (2, "N/A") else ()


def both(given_deltas, options):
    """The records of the plain rules, and the packed ones, with what was dropped."""
    sides = []
    for make in (plain_flows.aggregate, aggregate):
        dropped = Counter()
        sides.append((make(given_deltas, options, 42, dropped, name_of, target_of, process_of), dropped))
    return sides


def spelled(records):
    """The lines, or what is wrong with a record that has none: every field of it is wider than 64 bits."""
    try:
        return to_lines(records)
    except ValueError as error:
        return str(error)


@given(deltas, options, tags, st.booleans(), st.booleans())
def test_packed_flows_are_the_records_of_the_plain_rules(given_deltas, options, tags, in_cluster, labels):
    (plain, plain_dropped), (made, dropped) = both(given_deltas, options)
    if in_cluster:
        stage = InContainers(Options(kubernetes=KubernetesOptions(labels=("app",) if labels else ())), Known())
        plain, made = stage.apply(plain), stage.apply(made)
    plain, made = tagged(plain, tags), tagged(made, tags)

    assert dropped == plain_dropped
    assert made == plain and [*map(to_json, made)] == [*map(to_json, plain)]
    assert spelled(made) == spelled(plain)


@given(deltas, st.integers(0, 40), st.integers(0, 40))
def test_a_slice_has_its_records_and_lines(given_deltas, begin, end):
    (plain, _), (made, _) = both(given_deltas, Options("box"))
    part = made[begin:end]

    assert part == plain[begin:end] and len(part) == len(plain[begin:end])
    assert spelled(part) == spelled(plain[begin:end])
    assert part[1:] == plain[begin:end][1:] and all(part[at] == plain[begin:end][at] for at in range(len(part)))


def test_what_is_no_slice_of_neighbours_is_refused():
    made = aggregate([], Options("box"), 1)

    with pytest.raises(ValueError, match="steps of 2"):
        made[::2]
    with pytest.raises(IndexError):
        made[0]


def test_more_addresses_than_are_kept_in_mind_come_out_right(monkeypatch):
    for module in ("flows", "flow_lines"):
        monkeypatch.setattr(f"collector.{module}._KEPT", 4)
    many = [FlowDelta(packed(f"10.0.0.{number % 19}"), 443, packed(f"10.1.0.{number % 23}"), 40_000, "tcp", 7, 1,
                      "nginx", "incoming", number + 1, 1) for number in range(500)]
    (plain, _), (made, _) = both(many, Options("box"))

    assert made == plain
    assert [line for begin in range(0, len(made), 7) for line in to_lines(made[begin:begin + 7])] == to_lines(plain)
    assert ipaddress.ip_address(made[1].tags["src_ip"]) in ipaddress.ip_network("10.0.0.0/24")
