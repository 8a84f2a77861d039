"""What Prometheus is told is what the status says, and /healthz says whether all is well."""

import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from collector.metrics import MetricsServer, StatusCollector, illness, standstill
from collector.status import (
    ClusterStatus,
    DatasetStatus,
    KindStatus,
    MapStatus,
    NatStatus,
    ProgramStatus,
    SinkStatus,
    Status,
)
from kcompat.errors import Missing
from kcompat.hook_status import HookState, HookStatus

NETFLOW = DatasetStatus("netflow", HookState.ATTACHED, how="rawtp hooks", records=23, flush_s=0.25, restarts=1,
                        lost={"calls": 2}, left_out={"loopback": 5}, maps=(MapStatus("socks", 7, 100),), map_bytes=4096,
                        hooks=(HookStatus("rawtp__x", "x", HookState.ATTACHED),),
                        programs=(ProgramStatus("rawtp__x", 10, 2_000_000_000),))
BASH = DatasetStatus("bash", HookState.MISSING, "no uprobes", retry_in_s=30)


def status(*datasets, **changes):
    return Status(**{"pid": 1, "host": "box", "kernel": "6.1", "offsets": {"btf": 27}, "started_s": 1000.0,
                     "taken_s": 2000.0, "taken_monotonic_s": 500.0,
                     "interval_s": 60.0, "flushes": 3, "reloads": 1, "datasets": datasets,
                     "sinks": (SinkStatus("jsonl:x", 20, 1, 2),), **changes})


def samples(text):
    return {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(text) for s in f.samples}


def test_every_number_of_the_status_is_a_metric():
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status(NETFLOW, BASH)))

    told = samples(generate_latest(registry).decode())

    assert told.items() >= {
        ("kcompat_dataset_up", "netflow"): 1, ("kcompat_dataset_up", "bash"): 0,
        ("kcompat_records_total", "netflow"): 23, ("kcompat_lost_total", "netflow", "calls"): 2,
        ("kcompat_left_out_total", "netflow", "loopback"): 5, ("kcompat_flush_seconds", "netflow"): 0.25,
        ("kcompat_dataset_restarts_total", "netflow"): 1, ("kcompat_map_entries", "netflow", "socks"): 7,
        ("kcompat_map_capacity", "netflow", "socks"): 100, ("kcompat_bpf_runs_total", "netflow", "rawtp__x"): 10,
        ("kcompat_hook", "netflow", "x", "rawtp__x", "attached"): 1,
        ("kcompat_bpf_run_seconds_total", "netflow", "rawtp__x"): 2, ("kcompat_sink_written_total", "jsonl:x"): 20,
        ("kcompat_sink_dropped_total", "jsonl:x"): 1, ("kcompat_sink_waiting", "jsonl:x"): 2,
        ("kcompat_offsets", "btf"): 27, ("kcompat_flushes_total",): 3, ("kcompat_reloads_total",): 1,
        ("kcompat_last_flush_timestamp_seconds",): 2000, ("kcompat_bpf_map_bytes", "netflow"): 4096,
    }.items()
    assert ("kcompat_bpf_map_bytes", "bash") not in told  # nobody knows: no zero


def test_what_is_known_of_a_cluster_and_of_translations_is_told():
    registry = CollectorRegistry()
    cluster = ClusterStatus("https://api", True, 2, "client: refused", (
        KindStatus("pods", 5, True, 3.5, 1), KindStatus("jobs", 0, False, None, 0)))
    nat = NatStatus(True, 4, 1, 2, 7, {"nat events": 3}, "nf_conn by kprobes", "", (
        HookStatus("kprobe__insert", "__nf_conntrack_hash_insert", HookState.ATTACHED),))
    registry.register(StatusCollector(lambda: status(NETFLOW, kubernetes=cluster, nat=nat)))

    told = samples(generate_latest(registry).decode())

    assert told.items() >= {
        ("kcompat_kubernetes_up",): 1, ("kcompat_kubernetes_objects", "pods"): 5,
        ("kcompat_kubernetes_objects", "jobs"): 0, ("kcompat_kubernetes_silent_seconds", "pods"): 3.5,
        ("kcompat_kubernetes_failures_total", "client"): 2, ("kcompat_kubernetes_failures_total", "pods"): 1,
        ("kcompat_nat_namespaces",): 4, ("kcompat_nat_namespaces_refused",): 1, ("kcompat_nat_destinations",): 2,
        ("kcompat_nat_connections",): 7, ("kcompat_nat_lost_total", "nat events"): 3,
        ("kcompat_nat_source", "nf_conn by kprobes"): 1,
        ("kcompat_nat_hook", "__nf_conntrack_hash_insert", "kprobe__insert", "attached"): 1}.items()
    assert ("kcompat_kubernetes_silent_seconds", "jobs") not in told


@pytest.mark.parametrize("state, now_s, words", [
    (None, 0, "it has not begun"), (status(BASH), 500, "no dataset runs: bash: no uprobes"),
    (status(NETFLOW, BASH), 500, None),
    (status(NETFLOW), 709, None), (status(NETFLOW), 711, "nothing was flushed for 211 s"),
    # Whatever became of the clock on the wall.
    (status(NETFLOW, taken_s=-9e9), 709, None), (status(NETFLOW, taken_s=9e9), 711, "nothing was flushed for 211 s")])
def test_it_is_well_while_something_runs_and_is_flushed(state, now_s, words):
    assert illness(state, now_s) == words


@pytest.mark.parametrize("state, now_s, words", [
    (None, 0, "it has not begun"), (status(BASH), 500, None), (status(BASH), 711, "nothing was flushed for 211 s")])
def test_a_restart_is_for_what_stands_still_not_for_what_cannot_run(state, now_s, words):
    assert standstill(state, now_s) == words


@pytest.fixture
def server():
    """A server whose status is in the list it has."""
    held = [None]
    made = MetricsServer("127.0.0.1", 0, lambda: held[0])
    made.held = held
    yield made
    made.close()


def got(server, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_answers_over_http(server):
    assert got(server, "/healthz") == (503, "it has not begun\n")
    server.held[0] = status(NETFLOW, taken_monotonic_s=9e9)
    assert got(server, "/healthz") == (200, "fine\n")
    server.held[0] = status(BASH, taken_monotonic_s=9e9)
    assert (got(server, "/healthz")[0], got(server, "/livez")) == (503, (200, "fine\n"))
    server.held[0] = status(NETFLOW, taken_monotonic_s=9e9)
    code, text = got(server, "/metrics")
    assert code == 200 and samples(text)["kcompat_records_total", "netflow"] == 23
    assert samples(text)["process_resident_memory_bytes",] > 0
    assert got(server, "/")[0] == 404


def test_a_port_that_is_taken_is_told(server):
    with pytest.raises(Missing, match=rf"metrics on 127\.0\.0\.1:{server.port}: Address already in use"):
        MetricsServer("127.0.0.1", server.port, lambda: None)


def test_it_listens_where_it_is_told_and_nowhere_else(server):
    with socket.socket() as other:
        other.settimeout(10)
        with pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", server.port))
