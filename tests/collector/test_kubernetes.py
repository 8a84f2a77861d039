"""A cluster followed over HTTPS: pages, events, bookmarks, 410, cuts, a server that comes late, goes, and lies."""

import itertools
import logging
import os
import threading
import time
from pathlib import Path

import pytest
import yaml

from collector.config import KubernetesOptions, Options
from collector.enrich import kubernetes, kubernetes_watch, stage
from collector.enrich.kubernetes_cluster import End
from collector.record import Record
from tests.collector import kube_server as kube

ROOT = Path(__file__).parents[2]
API = "apps/v1"
WEB = kube.pod("web-1", "10.1.0.5", labels={"app": "web"}, owner=("ReplicaSet", "web-rs", "web-rs", API))
TCP = "tcp"


@pytest.fixture
def server(tmp_path):
    made = kube.KubeServer(tmp_path)
    yield made
    made.close()


@pytest.fixture
def follow(server):
    """follow() -> a Kubernetes that follows the server; closed at the end."""
    made = []

    def started(**options):
        options = {"kubeconfig": server.kubeconfig()} | options
        made.append(kubernetes.Kubernetes(KubernetesOptions(**options)))
        return made[-1]

    yield started
    for one in made:
        one.close()


def until(get, timeout_s=180):
    """What `get` gives, once it is something."""
    deadline = time.monotonic() + timeout_s
    while not (got := get()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return got


def at(known, ip, port=0):
    return known.is_told and known.destination(None, End(ip, port, TCP))


def watched(server, known):
    """Everything is listed and watched."""
    until(lambda: known.is_told and len({kind for kind, _ in set(server.watching)}) >= len(kube.PATHS))


def test_pods_services_and_owners_are_listed_and_then_watched(server, follow):
    server.put("pods", WEB)
    server.put("replicasets", kube.replica_set("web-rs", "web"))
    server.put("deployments", kube.deployment("web"))
    known = follow()
    watched(server, known)

    assert tuple(at(known, "10.1.0.5"))[:4] == ("shop", "web-1", "N/A", "web")

    server.put("services", kube.service("front", "10.2.0.1", selector={"app": "web"}))
    server.put("pods", kube.pod("late", "10.1.0.6"))
    until(lambda: at(known, "10.1.0.6"))
    until(lambda: at(known, "10.2.0.1", 80))
    server.delete("pods", "late")
    until(lambda: not at(known, "10.1.0.6"))

    assert at(known, "10.1.0.5").service_name == "front"
    assert {method for method, *_ in server.asked} == {"GET"}
    status = known.status()
    assert status.told and status.server.startswith("https://127.0.0.1:") and not status.error
    assert {one.kind: one.objects for one in status.kinds if one.objects} == {
        "pods": 1, "services": 1, "replicasets": 1, "deployments": 1}
    assert all(one.listed and one.silent_s is not None and not one.failures for one in status.kinds)


def test_owners_are_asked_for_by_their_metadata_alone(server, follow):
    watched(server, follow())

    asked = {kind: accept for (_, kind, _), accept in zip(server.asked, server.accepted, strict=False)}
    assert all(("PartialObjectMetadata" in asked[kind]) == (kind not in ("pods", "services", "endpointslices"))
               for kind in kube.PATHS.values())


def test_five_thousand_pods_come_in_pages_and_little_is_kept(server, follow):
    import tracemalloc

    server.put("pods", *(kube.pod(f"pod-{n}", f"10.{n >> 8}.{n & 255}.1", labels={"app": f"app-{n % 50}"})
                         for n in range(5000)))
    server.forget()
    known = follow()
    watched(server, known)
    until(lambda: known.status().objects("pods") == 5000)

    pages = [query for _, kind, query in server.asked if kind == "pods" and "watch" not in query]
    assert len(pages) >= 10 and all(query["limit"] == "500" for query in pages)
    assert at(known, "10.19.135.1").pod_name == f"pod-{19 * 256 + 135}"

    objects = kubernetes.objects
    tracemalloc.start()
    table = type(known._cluster.pods)(**known._cluster.pods._keys)
    table.replace([objects.pod(one) for one in list(server.objects["pods"].values())[:1000]])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2 << 20, kept


@pytest.mark.parametrize("as_status", [False, True], ids=["event", "status"])
def test_410_gone_lists_anew(server, follow, as_status):
    server.gone_as_status = as_status
    server.put("pods", WEB, kube.pod("gone", "10.1.0.9"))
    known = follow()
    watched(server, known)
    lists = sum(one.lists for one in known.watchers)

    # What happened meanwhile nobody remembers.
    server.refuse = 503
    server.cut()
    until(lambda: not server.watching)
    server.delete("pods", "gone")
    server.put("pods", kube.pod("new", "10.1.0.7"))
    server.put("services", kube.service("any", "10.2.0.9"))
    server.forget()
    server.refuse = None

    until(lambda: at(known, "10.1.0.7") and not at(known, "10.1.0.9"))
    assert at(known, "10.1.0.5") and sum(one.lists for one in known.watchers) > lists


def test_a_watch_cut_in_the_middle_of_an_event_goes_on_where_it_was(server, follow, caplog):
    server.put("pods", WEB)
    known = follow()
    watched(server, known)
    server.put("pods", kube.pod("before", "10.1.0.6"))
    until(lambda: at(known, "10.1.0.6"))

    server.cut()
    until(lambda: known.watchers[0].watches > 1)
    server.put("pods", kube.pod("after", "10.1.0.7"))

    until(lambda: at(known, "10.1.0.7"))
    assert known.watchers[0].lists == 1
    assert known.status().objects("pods") == 3
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_bookmark_moves_the_place_to_go_on_from(server, follow):
    server.put("pods", WEB)
    known = follow()
    watched(server, known)
    server.put("services", kube.service("any", "10.2.0.9"))
    until(lambda: at(known, "10.2.0.9", 80))
    server.bookmark()
    until(lambda: known.watchers[0].events)

    # All before the bookmark is forgotten: only who took it is not told 410.
    server.forget()
    server.cut()
    server.put("pods", kube.pod("after", "10.1.0.7"))

    until(lambda: at(known, "10.1.0.7"))
    assert known.watchers[0].lists == 1


def test_a_page_that_expired_begins_the_list_anew(server, follow):
    server.put("pods", *(kube.pod(f"pod-{n}", f"10.3.{n >> 8}.{n & 255}") for n in range(1200)))
    fetched = threading.Event()
    known = follow()
    real_list = kube._Handler.list

    def forgetful(self, kind, query):
        if kind == "pods" and "continue" in query and not fetched.is_set():
            fetched.set()
            self.kube.forget()
        return real_list(self, kind, query)

    kube._Handler.list = forgetful
    try:
        until(lambda: known.status().objects("pods") == 1200)
    finally:
        kube._Handler.list = real_list
    assert at(known, "10.3.4.10").pod_name == "pod-1034"


def test_a_server_that_is_slow_to_begin_holds_up_nobody(server, follow):
    server.put("pods", WEB)
    server.open.clear()
    known = follow()
    records = stage.Stage(Options(), known).apply([flow()])
    assert records == [flow()]

    server.open.set()
    until(lambda: at(known, "10.1.0.5"))


def test_no_server_is_one_warning_and_it_may_come_later(tmp_path, caplog):
    first = kube.KubeServer(tmp_path)
    config, port = first.kubeconfig(), first.port
    first.close()
    known = kubernetes.Kubernetes(KubernetesOptions(kubeconfig=config))
    try:
        until(lambda: sum(known.failures.values()) > 2 * len(kube.PATHS))
        assert not known.is_told
        warnings = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("collector")]
        assert len(warnings) == 1 and f"127.0.0.1:{port}" in warnings[0].getMessage()

        second = kube.KubeServer(tmp_path, port)
        second.put("pods", WEB)
        try:
            until(lambda: at(known, "10.1.0.5"))
        finally:
            second.close()
    finally:
        known.close()


def test_a_server_with_a_strangers_certificate_is_not_talked_to(server, follow, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    kube.make_certificates(elsewhere)
    (tmp_path / "other.pem").write_bytes((elsewhere / "ca.pem").read_bytes())
    skips = server.kubeconfig("other.pem", **{"insecure-skip-tls-verify": True})

    for path in (server.kubeconfig("other.pem"), skips):
        known = follow(kubeconfig=path)
        until(lambda known=known: known.failures)
    assert not known.is_told and not server.asked


def test_owners_one_may_not_list_leave_their_names_unknown_and_no_others(server, follow, monkeypatch):
    monkeypatch.setitem(kube.PATHS, "/apis/apps/v1/replicasets", None)
    server.put("pods", WEB, kube.pod("bare", "10.1.0.8"))
    known = follow()
    until(lambda: at(known, "10.1.0.8"))

    assert at(known, "10.1.0.8").deployment_name == "bare"
    assert at(known, "10.1.0.5").deployment_name == "N/A"


def test_what_was_not_heard_of_for_long_is_not_told(server, follow, monkeypatch, caplog):
    server.put("pods", WEB)
    known = follow()
    watched(server, known)
    assert at(known, "10.1.0.5")

    monkeypatch.setattr(kubernetes, "TRUSTED_S", -1.0)

    assert not known.is_told and not known.is_told
    assert sum("left out" in r.getMessage() for r in caplog.records) == 1


def test_everything_is_listed_anew_from_time_to_time(server, follow):
    server.put("pods", WEB)
    known = follow(resync_s=1.0)

    until(lambda: known.watchers and known.watchers[0].lists >= 3)
    assert at(known, "10.1.0.5") and not known.failures


def test_an_object_that_cannot_be_read_hides_no_other(server, follow):
    server.put("pods", kube.pod("odd", "no address"), WEB)
    known = follow()

    until(lambda: at(known, "10.1.0.5"))
    assert known.watchers[0].skipped == 1


class Page:
    """An answer to a list, in chunks."""

    def __init__(self, *chunks):
        self._chunks, self.is_closed = chunks, False

    def stream(self, amt, decode_content):
        yield from self._chunks

    def release_conn(self):
        pass

    def close(self):
        self.is_closed = True


def listing(fetch):
    return kubernetes_watch.Watcher("pods", fetch, dict, None, stop=threading.Event(), heard=lambda *_: None,
                                    failed=lambda *_: None, resync_s=60)


@pytest.mark.parametrize(("tokens", "words"), [
    (itertools.repeat("same"), "followed by itself"), (map(str, itertools.count()), "over 1000 pages")])
def test_a_list_without_end_is_no_list(tokens, words):
    with pytest.raises(kubernetes_watch.Refused, match=words):
        listing(lambda *_: Page(b'{"metadata": {"continue": "%s"}}' % next(tokens).encode()))._list()


def test_a_page_without_end_is_read_no_further(monkeypatch):
    monkeypatch.setattr(kubernetes_watch, "_LONGEST_PAGE", 100)
    page = Page(*[b" " * 30] * 3, b"{}", *[b" " * 30] * 3)
    with pytest.raises(kubernetes_watch.Refused, match="a page of over 100 bytes"):
        listing(lambda *_: page)._list()
    assert page.is_closed


def test_a_client_that_could_not_be_made_at_once_keeps_no_later_warning_off(monkeypatch):
    monkeypatch.setattr(kubernetes.Kubernetes, "_follow", lambda *_: None)
    known = kubernetes.Kubernetes(KubernetesOptions(), client=object())
    known._threads[0].join()
    outcomes = iter([OSError("no token yet"), object()])

    def connect(options):
        outcome = next(outcomes)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(kubernetes, "connect", connect)
    monkeypatch.setattr(known._stop, "wait", lambda timeout_s: None)
    known._client = None
    known._begin()

    assert known.failures["client"] == 1 and not any(known._in_a_row.values())


def test_in_a_pod_its_service_account_is_used(server, tmp_path, monkeypatch):
    from kubernetes.config import incluster_config

    (tmp_path / "token").write_text(kube.TOKEN)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.pem"))
    for name, value in (("HOST", "127.0.0.1"), ("PORT", str(server.port))):
        monkeypatch.setitem(os.environ, f"KUBERNETES_SERVICE_{name}", value)
    server.put("pods", WEB)
    assert kubernetes.is_wanted(KubernetesOptions()) and not kubernetes.is_wanted(KubernetesOptions(enabled="off"))

    known = kubernetes.Kubernetes(KubernetesOptions())
    try:
        until(lambda: at(known, "10.1.0.5"))
    finally:
        known.close()


def test_our_cluster_role_allows_what_is_asked_and_no_more():
    rules = next(one["rules"] for one in yaml.safe_load_all((ROOT / "ci/packaging/kubernetes/rbac.yaml").read_text())
                 if one["kind"] == "ClusterRole")

    assert sorted(name for rule in rules for name in rule["resources"]) == sorted(kube.PATHS.values())
    assert all(set(rule["verbs"]) == {"get", "list", "watch"} for rule in rules)


def flow(measurement="netflow", **tags):
    tags = {"src_ip": "10.1.0.5", "src_port": "*", "dst_ip": "10.1.0.6", "dst_port": "80", "transport": TCP,
            "pid": "0", "dst_nat_ip": "N/A", "dst_nat_port": "N/A"} | tags
    return Record(measurement, tags, {"bytes_read": 1}, 1)
