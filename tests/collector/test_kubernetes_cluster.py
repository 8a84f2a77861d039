"""The rules by which an end of a flow is a pod's or a service's, on their own."""

from hypothesis import given, settings
from hypothesis import strategies as st

from collector.enrich import kubernetes_objects as objects
from collector.enrich.kubernetes_cluster import Cluster, End, Table
from tests.collector import kube_server as kube

API = "apps/v1"


def cluster(*pods, services=(), slices=(), replica_sets=(), deployments=()):
    made = Cluster()
    made.pods.replace([objects.pod(one) for one in pods])
    made.services.replace([objects.service(one) for one in services])
    made.slices.replace([objects.slice_(one) for one in slices])
    for kind, rows in (("ReplicaSet", replica_sets), ("Deployment", deployments)):
        made.owned["apps", kind] = Table()
        made.owned["apps", kind].replace([objects.owned(one) for one in rows])
        made.can_tell_owners.add(("apps", kind))
    return made


def end(ip, port=0, transport="tcp"):
    return End(ip, port, transport)


def names(workload):
    return workload and tuple(workload)[:4]


def test_the_source_is_the_pod_of_the_processs_container_then_of_the_address_then_a_service():
    known = cluster(kube.pod("a", "10.0.0.1", ["c1"]), kube.pod("b", "10.0.0.2", ["c2"]),
                    services=[kube.service("s", "10.9.0.1")])

    assert names(known.source(("c1",), end("172.16.0.1"))) == ("shop", "a", "N/A", "a")
    assert names(known.source(("other", "c1"), end("10.0.0.1"))) == ("shop", "a", "N/A", "a")
    assert names(known.source((), end("10.0.0.2"))) == ("shop", "b", "N/A", "b")
    assert names(known.source((), end("10.9.0.1", 80))) == ("shop", "N/A", "s", "N/A")
    assert known.source((), end("10.9.0.1", 81)) is None and known.source((), end("10.9.0.1", 80, "udp")) is None


def test_a_process_id_that_is_anothers_by_now_does_not_name_the_wrong_pod():
    known = cluster(kube.pod("a", "10.0.0.1", ["c1"]), kube.pod("b", "10.0.0.2", ["c2"]))

    assert known.source(("c1",), end("10.0.0.2")).pod_name == "b"


def test_the_destination_is_where_nat_leads_then_the_address_then_a_service():
    known = cluster(kube.pod("a", "10.0.0.1"), kube.pod("b", "10.0.0.2"), services=[kube.service("s", "10.9.0.1")])

    assert known.destination(end("10.0.0.2", 8080), end("10.0.0.1", 80)).pod_name == "b"
    assert known.destination(end("8.8.8.8", 53), end("10.0.0.1", 80)).pod_name == "a"
    assert known.destination(end("8.8.8.8", 53), end("10.9.0.1", 80)).service_name == "s"
    assert known.destination(None, end("8.8.8.8", 53)) is None


def test_the_service_is_the_first_by_name_that_selects_the_pod_in_its_namespace():
    labels = {"app": "web", "tier": "front"}
    known = cluster(kube.pod("a", "10.0.0.1", labels=labels), kube.pod("b", "10.0.0.2", labels={"tier": "front"}),
                    services=[kube.service("z", "10.9.0.1", selector={"app": "web"}),
                              kube.service("m", "None", selector=labels),
                              kube.service("c", "10.9.0.3", selector={"app": "web", "tier": "back"}),
                              kube.service("b", "10.9.0.4", selector={}),
                              kube.service("a", "10.9.0.5", selector={"app": "web"}, namespace="other")])

    assert known.destination(None, end("10.0.0.1")).service_name == "m"
    assert known.destination(None, end("10.0.0.2")).service_name == "N/A"


def test_a_service_without_a_selector_has_the_pods_its_endpoints_name():
    known = cluster(kube.pod("a", "10.0.0.1"),
                    services=[kube.service("by-hand", "10.9.0.1"),
                              kube.service("another", "10.9.0.2", selector={"app": "web"})],
                    slices=[kube.endpoint_slice("by-hand-1", "by-hand", ["a"]),
                            kube.endpoint_slice("another-1", "another", ["a"])])

    assert known.destination(None, end("10.0.0.1")).service_name == "by-hand"


def test_the_deployment_is_the_top_owner_of_whatever_kind():
    known = cluster(
        kube.pod("bare", "10.0.0.1"),
        kube.pod("web", "10.0.0.2", owner=("ReplicaSet", "rs", "rs", API)),
        kube.pod("db", "10.0.0.3", owner=("StatefulSet", "db-set", "db-set", API)),
        kube.pod("lone", "10.0.0.4", owner=("ReplicaSet", "lone-rs", "lone-rs", API)),
        kube.pod("new", "10.0.0.5", owner=("ReplicaSet", "not-heard-of", "new-rs", API)),
        kube.pod("odd", "10.0.0.6", owner=("ReplicaSet", "custom", "custom-set", "example.org/v1")),
        replica_sets=[kube.replica_set("rs", "web"), kube.replica_set("lone-rs")],
        deployments=[kube.deployment("web", owner=("Rollout", "r", "roll", "argoproj.io/v1"))])

    tops = [known.destination(None, end(f"10.0.0.{n}")).deployment_name for n in range(1, 7)]

    assert tops == ["bare", "roll", "db-set", "lone-rs", "N/A", "custom-set"]


def test_owners_in_a_circle_end():
    circle = [kube.replica_set("a", owner=None), kube.replica_set("b", owner=None)]
    for one, other in (circle, circle[::-1]):
        one["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "uid": other["metadata"]["uid"],
                                               "name": "x", "apiVersion": API}]
    known = cluster(kube.pod("p", "10.0.0.1", owner=("ReplicaSet", "a", "a", API)), replica_sets=circle)

    assert known.destination(None, end("10.0.0.1")).deployment_name == "N/A"


def test_a_pod_of_the_hosts_network_is_told_by_a_declared_port_alone():
    proxy = kube.pod("proxy", "192.168.0.1", ["c1"], ports=[(10256, "TCP")], host_network=True)
    dns = kube.pod("dns", "192.168.0.1", ports=[(53, "UDP")], host_network=True)
    known = cluster(proxy, dns, kube.pod("twin", "192.168.0.1", ports=[(9, "TCP")], host_network=True),
                    kube.pod("twin2", "192.168.0.1", ports=[(9, "TCP")], host_network=True))

    assert known.destination(None, end("192.168.0.1", 10256)).pod_name == "proxy"
    assert known.destination(None, end("192.168.0.1", 53, "udp")).pod_name == "dns"
    assert known.source(("c1",), end("192.168.0.1")).pod_name == "proxy"
    for port, transport in ((22, "tcp"), (53, "tcp"), (0, "tcp"), (9, "tcp")):
        assert known.destination(None, end("192.168.0.1", port, transport)) is None


def test_an_address_that_passes_to_the_next_pod_is_the_nexts():
    old = kube.pod("old", "10.0.0.1", phase="Succeeded")
    going = kube.pod("going", "10.0.0.2", deletionTimestamp="2026-11-28T00:00:00Z")

    known = cluster(old, kube.pod("a", "10.0.0.1"), going, kube.pod("b", "10.0.0.2"),
                    kube.pod("x", "10.0.0.3"), kube.pod("y", "10.0.0.3"))

    assert known.destination(None, end("10.0.0.1")).pod_name == "a"
    assert known.destination(None, end("10.0.0.2")).pod_name == "b"
    assert known.destination(None, end("10.0.0.3")) is None


def test_addresses_are_compared_as_the_tags_spell_them():
    known = cluster(kube.pod("a", "FD00:0:0::1"))

    assert known.destination(None, end("fd00::1")).pod_name == "a"


PODS = st.builds(lambda name, ip, labels, ended, containers: kube.pod(
    f"p{name}", f"10.0.0.{ip}", [f"c{n}" for n in containers], labels=labels, phase="Failed" if ended else "Running"),
    st.integers(0, 5), st.integers(0, 3), st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy")),
    st.booleans(), st.sets(st.integers(0, 3)))
SERVICES = st.builds(lambda name, ip, selector: kube.service(f"s{name}", f"10.9.0.{ip}", selector=selector),
                     st.integers(0, 4), st.integers(0, 3),
                     st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy")))
EVENTS = st.lists(st.one_of(st.tuples(st.just("pods"), PODS, st.booleans()),
                            st.tuples(st.just("services"), SERVICES, st.booleans())), max_size=30)


@settings(max_examples=200, deadline=None)
@given(EVENTS)
def test_after_any_events_the_indexes_say_what_looking_at_everything_says(events):
    known, there = Cluster(), {"pods": {}, "services": {}}
    for kind, seen, is_there in events:
        uid = seen["metadata"]["uid"]
        if is_there:
            getattr(known, kind).put((objects.pod if kind == "pods" else objects.service)(seen))
            there[kind][uid] = seen
        else:
            getattr(known, kind).drop(uid)
            there[kind].pop(uid, None)

    for last in range(4):
        ip = f"10.0.0.{last}"
        pods = [one for one in there["pods"].values()
                if one["status"]["podIP"] == ip and one["status"]["phase"] == "Running"]
        found = known.destination(None, end(ip, 80))
        if len(pods) == 1:
            labels = pods[0]["metadata"]["labels"].items()
            selecting = [one["metadata"]["name"] for one in there["services"].values()
                         if one["spec"]["selector"] and one["spec"]["selector"].items() <= labels]
            assert names(found) == ("shop", pods[0]["metadata"]["name"], min(selecting, default="N/A"),
                                    pods[0]["metadata"]["name"])
        else:
            assert found is None


@settings(max_examples=100, deadline=None)
@given(EVENTS, EVENTS)
def test_a_list_replaces_whatever_events_made(first, second):
    changed, fresh = Cluster(), Cluster()
    for rows, clusters in ((first, [changed]), (second, [changed, fresh])):
        pods = [objects.pod(seen) for kind, seen, _ in rows if kind == "pods"]
        for one in clusters:
            one.pods.replace(pods)

    assert vars(changed.pods)["_objects"] == vars(fresh.pods)["_objects"]
    assert vars(changed.pods)["_indexes"] == vars(fresh.pods)["_indexes"]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["metadata", "spec", "status", "uid", "name", "labels", "podIPs", "ip", "ports", "selector",
                         "containers", "ownerReferences", "containerStatuses", "containerID"]), inner, max_size=4),
                    max_leaves=20)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["metadata", "spec", "status", "endpoints"]), JSON))
def test_whatever_a_server_sends_is_an_object_or_one_of_the_errors_a_watcher_expects(seen):
    for strip in (objects.pod, objects.service, objects.slice_, objects.owned):
        try:
            strip(seen)
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
