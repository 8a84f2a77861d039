"""HTTP exchanges as records: the tables' tags and fields, what is merged, what is left out, what is bounded."""

import ipaddress
from dataclasses import replace

import pytest

from collector.config import Options
from collector.exclusions import Exclusions
from collector.http_exchanges import Ends, Seen
from collector.http_flows import HttpFlows, template_of
from collector.protocols.exchange import Exchange
from collector.redaction import Redactions

OPTIONS = Options("box")


def packed(text):
    return ipaddress.ip_address(text if ":" in text else f"::ffff:{text}").packed


CLIENT = Ends(packed("10.0.0.1"), 40_000, packed("93.184.216.34"), 80, 7, 42, "curl", True, False)
SERVER = Ends(packed("10.0.0.1"), 80, packed("10.0.0.9"), 40_001, 7, 43, "nginx", False, False)
GET = Exchange("GET", "/a", False, 200, "1.1", 1000, "")


def seen(ends=CLIENT, times=1, latency_ns=1000, **changes):
    return Seen(ends, GET._replace(**changes), times, latency_ns)


def taken(*exchanges, options=OPTIONS, names=None):
    flows = HttpFlows(lambda: options)
    for each in exchanges:
        flows.add(each)
    return flows.take(5, lambda netns, address: (names or {}).get((netns, address))), flows


def test_a_record_has_every_tag_and_field_of_the_table():
    (record,), _ = taken(seen())

    assert record.measurement == "httpflow" and record.time == 5
    assert record.tags == {
        "host": "box", "source": "httpflow", "direction": "outgoing", "src_ip": "10.0.0.1", "src_port": "*",
        "src_ip_type": "private", "dst_ip": "93.184.216.34", "dst_port": "80", "dst_ip_type": "other",
        "dst_nat_ip": "N/A", "dst_nat_port": "N/A", "pid": "42", "process_name": "curl", "transport": "tcp",
        "family": "IPv4"}
    assert record.fields == {"truncated": False, "path": "/a", "status_code": 200, "method": "GET", "latency": 1000,
                             "http_version": "1.1", "count": 1}


def test_what_looks_alike_is_one_point_with_the_mean_latency():
    other_port = CLIENT._replace(local_port=50_000)
    records, _ = taken(seen(), seen(other_port, 3, 9000), seen(status_code=404), seen(method="HEAD"),
                       seen(truncated=True), seen(http_version="1.0"), seen(path="/b"))

    assert len(records) == 6
    assert (records[0].fields["count"], records[0].fields["latency"]) == (4, 2500)


def test_the_server_is_the_source_of_what_comes_in():
    (record,), _ = taken(seen(SERVER, host="our.name"))

    assert (record.tags["direction"], record.tags["src_port"], record.tags["dst_port"]) == ("incoming", "80", "*")
    assert "dst_domain" not in record.tags  # the name asked for is ours


@pytest.mark.parametrize("host, name", [("example.org", "example.org"), ("example.org:8080", "example.org"),
                                        ("example.org.", "example.org"), ("93.184.216.34", None),
                                        ("93.184.216.34:80", None), ("[::1]:80", None), ("[::1]", None), ("", None)])
def test_the_host_asked_for_is_the_name_where_dns_told_none(host, name):
    (record,), _ = taken(seen(host=host))
    assert record.tags.get("dst_domain") == name
    (record,), _ = taken(seen(host=host), names={(7, CLIENT.remote): "from.dns"})
    assert record.tags["dst_domain"] == "from.dns"


@pytest.mark.parametrize("ends, options, reason", [
    (CLIENT._replace(local_port=0), OPTIONS, "port"),
    (CLIENT._replace(remote=packed("0.0.0.0")), OPTIONS, "address"),
    (CLIENT._replace(remote=packed("127.0.0.1")), OPTIONS, "loopback"),
    (CLIENT, Options("box", exclude=Exclusions.parse(["port=80"])), "excluded"),
    (CLIENT, Options("box", exclude=Exclusions.parse(["process=curl"])), "excluded"),
    (CLIENT, Options("box", exclude=Exclusions.parse(["direction=outgoing"])), "excluded"),
    (CLIENT, Options("box", exclude=Exclusions.parse(["cidr=93.0.0.0/8"])), "excluded"),
    (CLIENT._replace(local=packed("fd00::1"), remote=packed("fd00::2")), Options("box", ipv6=False), "excluded")])
def test_what_is_not_wanted_is_left_out_and_counted(ends, options, reason):
    records, flows = taken(seen(ends, 3, 3), options=options)
    assert records == [] and flows.left_out == {reason: 3}


def test_paths_past_the_limit_are_counted_under_a_star():
    records, flows = taken(*(seen(path=f"/{n % 50}") for n in range(200)), options=Options("box", max_paths=10))

    counts = {r.fields["path"]: r.fields["count"] for r in records}
    assert len(counts) == 11 and counts["*"] == flows.starred == 160 and sum(counts.values()) == 200


def test_points_past_the_limit_are_lost_and_counted():
    records, flows = taken(*(seen(status_code=200 + n) for n in range(20)), options=Options("box", max_flows=5))
    assert len(records) == 5 and flows.left_out == {"overflow": 15}


def test_whoever_knows_the_process_has_the_last_word():
    flows = HttpFlows(lambda: Options("box", exclude=Exclusions.parse(["process=hidden"])),
                      lambda pid, comm: (f"{comm}-{pid}" if pid == 42 else "hidden", {"container_id": "c"}))
    flows.add(seen())
    flows.add(seen(SERVER))
    (record,) = flows.take(5, lambda netns, address: None)

    assert (record.tags["process_name"], record.tags["container_id"]) == ("curl-42", "c")
    assert flows.left_out == {"excluded": 1}


def test_what_the_options_say_counts_from_the_next_exchange_on():
    now = [Options("box")]
    flows = HttpFlows(lambda: now[0])
    flows.add(seen(path="/reset/abc"))
    now[0] = replace(now[0], redact=Redactions.parse(["path=/reset/([^/]+)"]),
                     exclude=Exclusions.parse(["port=40001"]))
    flows.add(seen(path="/reset/def"))
    flows.add(seen(SERVER))

    assert [r.fields["path"] for r in flows.take(5, lambda netns, address: None)] == ["/reset/abc", "/reset/***"]
    assert flows.left_out == {"excluded": 1}


def test_every_interval_begins_with_nothing():
    _, flows = taken(seen())
    assert flows.take(6, lambda netns, address: None) == []


@pytest.mark.parametrize("path, template", [
    ("/users/17/posts/3", "/users/{id}/posts/{id}"), ("/17", "/{id}"), ("/v1/x17", "/v1/x17"), ("/", "/"),
    ("/o/8f14e45f-ceea-467f-9575-6a1b2c3d4e5f/x", "/o/{id}/x"), ("/o/d41d8cd98f00b204e9800998ecf8427e", "/o/{id}"),
    ("/deadbeef", "/deadbeef"), ("/abcdefabcdefabcdef", "/abcdefabcdefabcdef"), ("/1/2/3", "/{id}/{id}/{id}")])
def test_templates_take_ids_out_of_paths(path, template):
    assert template_of(path) == template
    (record,), _ = taken(seen(path=path), options=Options("box", http_templates=True))
    assert record.fields["path"] == template


def test_what_is_redacted_is_gone_before_paths_are_told_apart():
    records, _ = taken(*(seen(path=f"/users/{n}/7") for n in range(9)),
                       options=Options("box", http_templates=True, max_paths=1,
                                       redact=Redactions.parse(["path=/users/([^/]+)"])))
    assert [(r.fields["path"], r.fields["count"]) for r in records] == [("/users/***/{id}", 9)]
