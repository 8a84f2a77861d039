"""Aggregation: what goes in comes out, once, under the right key, or is counted as dropped."""

import ipaddress
import os
import re
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.config import Options
from collector.exclusions import Exclusions
from collector.flows import ENRICHER_TAGS, FlowDelta, aggregate

OPTIONS = Options("box")
MAPPED = bytes(10) + b"\xff\xff"


def packed(text):
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else MAPPED + address.packed


CURL = FlowDelta(packed("10.0.0.1"), 40000, packed("93.184.216.34"), 443, "tcp", 7, 100, "curl", "outgoing", 100, 10)

addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "0.0.0.0", "127.0.0.1", "8.8.8.8", "::1", "::", "2001:db8::1"])
ports = st.sampled_from([0, 22, 443, 40000, 50000])
counts = st.integers(0, 3)
deltas = st.lists(st.builds(
    FlowDelta, addresses.map(packed), ports, addresses.map(packed), ports, st.sampled_from(["tcp", "udp"]),
    st.integers(1, 2), st.integers(0, 2), st.sampled_from(["", "curl", "sshd"]),
    st.sampled_from(["incoming", "outgoing"]), counts, counts, counts, st.sampled_from([0, 8, 80]),
    st.sampled_from([0, 4, 40]), counts, counts), max_size=60)


def is_reported(delta):
    """The rules of the dataset, said once more and slowly."""
    ends = [ipaddress.ip_address(end) for end in (delta.local, delta.remote)]
    ends = [getattr(end, "ipv4_mapped", None) or end for end in ends]
    tcp = (delta.retransmits, delta.established, delta.closed) if delta.transport == "tcp" else ()
    return (any((delta.bytes_read, delta.bytes_written, *tcp)) and delta.local_port and delta.remote_port
            and not any(end.is_unspecified or end.is_loopback for end in ends))


@given(deltas)
def test_sums_out_are_sums_in_less_what_was_dropped(given_deltas):
    dropped = Counter()
    records = aggregate(given_deltas, OPTIONS, 1, dropped)
    kept = [delta for delta in given_deltas if is_reported(delta)]

    def total(field):
        return sum(record.fields.get(field, 0) for record in records)

    assert total("bytes_read") == sum(delta.bytes_read for delta in kept)
    assert total("bytes_written") == sum(delta.bytes_written for delta in kept)
    tcp = [delta for delta in kept if delta.transport == "tcp"]
    assert total("retransmits") == sum(delta.retransmits for delta in tcp)
    assert total("tcp_established") == sum(delta.established for delta in tcp)
    assert total("tcp_closed") == sum(delta.closed for delta in tcp)
    assert dropped.total() == len(given_deltas) - len(kept)


@given(deltas, st.integers(1, 5))
def test_flows_past_the_cap_are_dropped_and_counted(given_deltas, max_flows):
    uncapped, capped = Counter(), Counter()
    everything = aggregate(given_deltas, OPTIONS, 1, uncapped)
    records = aggregate(given_deltas, Options("box", max_flows=max_flows), 1, capped)

    assert records == everything[:max_flows]
    assert bool(capped["overflow"]) == (len(everything) > max_flows)
    assert capped - uncapped == Counter(overflow=capped["overflow"])


@given(deltas)
def test_one_point_per_key_and_order_does_not_matter(given_deltas):
    records = aggregate(given_deltas, OPTIONS, 1)
    backwards = aggregate(given_deltas[::-1], OPTIONS, 1)
    namespaces = len({delta.netns for delta in given_deltas})

    def as_set(found):
        return Counter((frozenset(record.tags.items()), frozenset(record.fields.items())) for record in found)

    assert as_set(records) == as_set(backwards)
    assert max(Counter(frozenset(record.tags.items()) for record in records).values(), default=0) <= max(namespaces, 1)


def test_a_name_is_asked_for_in_the_namespace_of_the_flow():
    asked = []
    records = aggregate([CURL, CURL._replace(netns=8)], OPTIONS, 1,
                        name_of=lambda netns, address: asked.append((netns, address)) or (netns == 7 and "example.com"))

    assert asked == [(7, CURL.remote), (8, CURL.remote)]
    assert [r.tags.get("dst_domain") for r in records] == ["example.com", None]


def test_a_record_in_full():
    delta = CURL._replace(retransmits=1, rtt_us=1500, rtt_var_us=70, rtt_samples=1, established=1, closed=1)
    (record,) = aggregate([delta], OPTIONS, 42)

    assert record.measurement == "netflow" and record.time == 42
    assert record.tags == {
        "host": "box", "source": "netflow", "direction": "outgoing", "src_ip": "10.0.0.1", "src_port": "*",
        "src_ip_type": "private", "dst_ip": "93.184.216.34", "dst_port": "443", "dst_ip_type": "other",
        "dst_nat_ip": "N/A", "dst_nat_port": "N/A", "pid": "100", "process_name": "curl", "transport": "tcp",
        "family": "IPv4"}
    assert record.fields == {"bytes_read": 100, "bytes_written": 10, "retransmits": 1, "rtt": 1500, "rtt_var": 70,
                             "tcp_closed": 1, "tcp_established": 1}


def test_udp_has_no_tcp_fields_and_the_unknown_process_is_not_empty():
    delta = CURL._replace(transport="udp", pid=0, process_name="", retransmits=5, rtt_us=100, rtt_samples=1)
    (record,) = aggregate([delta], OPTIONS, 1)

    assert record.fields == {"bytes_read": 100, "bytes_written": 10}
    assert (record.tags["pid"], record.tags["process_name"]) == ("0", "N/A")


def test_connections_of_one_client_merge_when_their_port_is_starred():
    many = [CURL._replace(local_port=32768 + number) for number in range(23)]

    (merged,) = aggregate(many, OPTIONS, 1)

    assert merged.fields["bytes_read"] == 2300
    assert len(aggregate(many, Options("box", ephemeral_port=65535), 1)) == 23


@pytest.mark.parametrize("change", [
    {"netns": 8}, {"pid": 101}, {"process_name": "wget"}, {"remote_port": 80}, {"transport": "udp"},
    {"direction": "incoming"}, {"remote": packed("8.8.8.8")}, {"local": packed("10.0.0.2")}, {"local_port": 1000},
])
def test_everything_in_the_key_splits_flows(change):
    assert len(aggregate([CURL, CURL._replace(**change)], OPTIONS, 1)) == 2


def test_rtt_is_the_mean_of_sockets_with_a_sample():
    sampled = [CURL._replace(rtt_us=1000, rtt_var_us=11, rtt_samples=1),
               CURL._replace(rtt_us=2001, rtt_var_us=20, rtt_samples=1)]
    fresh = CURL._replace(rtt_us=0, rtt_var_us=0, rtt_samples=0)

    (record,) = aggregate([*sampled, fresh], OPTIONS, 1)
    (without,) = aggregate([fresh], OPTIONS, 1)

    assert (record.fields["rtt"], record.fields["rtt_var"]) == (1500, 15)
    assert (without.fields["rtt"], without.fields["rtt_var"]) == (0, 0)


def test_a_retransmit_alone_is_a_change_and_an_rtt_alone_is_not():
    idle = CURL._replace(bytes_read=0, bytes_written=0)

    assert len(aggregate([idle._replace(retransmits=1)], OPTIONS, 1)) == 1
    assert aggregate([idle._replace(rtt_us=100, rtt_samples=1)], OPTIONS, 1) == []


@pytest.mark.parametrize(("change", "reason"), [
    ({"local_port": 0}, "port"), ({"remote_port": 0}, "port"), ({"local": bytes(16)}, "address"),
    ({"remote": packed("0.0.0.0")}, "address"), ({"remote": packed("127.1.2.3")}, "loopback"),
    ({"local": packed("::1")}, "loopback"), ({"bytes_read": 0, "bytes_written": 0}, "unchanged"),
])
def test_what_is_never_reported_is_counted_by_reason(change, reason):
    dropped = Counter()

    assert aggregate([CURL._replace(**change)], OPTIONS, 1, dropped) == []
    assert dropped == {reason: 1}


def test_loopback_on_request():
    local = CURL._replace(local=packed("::1"), remote=packed("::1"))

    (record,) = aggregate([local], Options("box", loopback=True), 1)

    assert (record.tags["src_ip_type"], record.tags["family"]) == ("loopback", "IPv6")


@pytest.mark.parametrize("rule", [
    "cidr=10.0.0.0/8", "cidr=93.184.0.0/16", "port=443", "port=40000", "process=curl", "direction=outgoing",
])
def test_exclusions(rule):
    dropped = Counter()
    options = Options("box", exclude=Exclusions.parse([rule]))
    other = CURL._replace(local=packed("11.0.0.1"), local_port=22, remote=packed("2001:db8::1"), remote_port=50000,
                          process_name="sshd", direction="incoming")

    (record,) = aggregate([CURL, other], options, 1, dropped)

    assert record.tags["process_name"] == "sshd"
    assert dropped == {"excluded": 1}


def test_a_v6_flow_is_written_as_rfc_5952():
    (record,) = aggregate([CURL._replace(local=packed("2001:db8:0:0:1:0:0:1"), remote=packed("fd00::1"))], OPTIONS, 1)

    assert (record.tags["src_ip"], record.tags["dst_ip_type"]) == ("2001:db8::1:0:0:1", "private")
    assert socket.inet_pton(socket.AF_INET6, record.tags["src_ip"]) == packed("2001:db8:0:0:1:0:0:1")


def test_every_name_of_the_users_table_is_produced_or_left_to_an_enricher():
    shared = Path(os.environ.get("KCOMPAT_SHARED", Path(__file__).parents[2] / "../shared"))
    table = shared / "datakit-ebpf.md"
    if not table.is_file():
        pytest.skip(f"no {table}")
    section = table.read_text().split("*netflow*:")[1].split("*httpflow*:")[0]
    tags, fields = (set(re.findall(r"^ *\|(\w+)\|", part, re.MULTILINE)) - {"name"}
                    for part in section.split("- fields"))

    (record,) = aggregate([CURL], OPTIONS, 1)

    assert tags == set(record.tags) | set(ENRICHER_TAGS)
    assert not set(record.tags) & set(ENRICHER_TAGS)
    assert fields == set(record.fields)


def test_two_hundred_thousand_sockets_are_aggregated_in_seconds_not_minutes():
    sockets = [CURL._replace(local_port=32768 + number % 20000, remote=MAPPED + (number % 500 << 8 | 1).to_bytes(4),
                             pid=number % 50) for number in range(200_000)]

    start = time.process_time()
    records = aggregate(sockets, OPTIONS, 1)

    assert sum(record.fields["bytes_read"] for record in records) == 200_000 * 100
    assert time.process_time() - start < 3  # 0.2 s on an idle machine
