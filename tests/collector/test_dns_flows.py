"""Exchanges merged into records: sums are right, the direction is, and what is left out is counted."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.config import Options
from collector.dns_exchanges import Exchange, Exchanges
from collector.dns_flows import DnsFlows
from collector.exclusions import Exclusions
from collector.protocols.packets import Segment
from tests.collector.wire import TCP, UDP, packed, query, question, response

HERE, THERE, LOOP = packed("10.0.0.1"), packed("8.8.8.8"), packed("127.0.0.53")
ASKED = Exchange(7, HERE, 40000, THERE, 53, UDP, 0, 100, question("x.org"))
OPTIONS = Options("box")


def flows(options=OPTIONS):
    return DnsFlows(lambda: options, lambda netns, address: address in (HERE, LOOP))


def taken(*exchanges, options=OPTIONS):
    made = flows(options)
    for exchange in exchanges:
        made.add(exchange)
    return made.take(42, lambda netns, address: "dns.google" if address == THERE else None), made.left_out


def test_a_record_in_full():
    (record,), left_out = taken(ASKED, ASKED._replace(latency_ns=201))

    assert record.measurement == "dnsflow" and record.time == 42 and not left_out
    assert record.tags == {
        "host": "box", "source": "dnsflow", "direction": "outgoing", "src_ip": "10.0.0.1", "src_port": "*",
        "src_ip_type": "private", "dst_ip": "8.8.8.8", "dst_port": "53", "dst_ip_type": "other", "transport": "udp",
        "family": "IPv4", "dst_domain": "dns.google"}
    assert record.fields == {"rcode": 0, "latency": 150, "latency_max": 201, "count": 2}


@given(st.lists(st.integers(1, 6 * 10**9), min_size=1, max_size=300))
def test_percentiles_are_within_one_in_a_hundred(latencies_ns):
    (record,), _ = taken(*(ASKED._replace(latency_ns=ns) for ns in latencies_ns),
                         options=Options("box", dns_percentiles=True))

    ordered = sorted(latencies_ns)
    for name, share in (("latency_p50", 0.5), ("latency_p95", 0.95), ("latency_p99", 0.99)):
        true_ns = ordered[int(share * (len(ordered) - 1))]
        assert abs(record.fields[name] - true_ns) <= 0.0101 * true_ns + 1
    assert record.fields["latency_max"] == ordered[-1] >= record.fields["latency_p99"]


def test_percentiles_only_of_what_was_counted_with_them():
    now = [Options("box", dns_percentiles=True)]
    made = DnsFlows(lambda: now[0], lambda netns, address: address == HERE)
    made.add(ASKED._replace(rcode=-1, latency_ns=0))
    now[0] = OPTIONS
    (timed_out,) = made.take(1, lambda netns, address: None)
    made.add(ASKED)
    (plain,) = made.take(2, lambda netns, address: None)

    assert timed_out.fields["latency_p99"] == 0 and "latency_p99" not in plain.fields


def test_as_the_server_we_are_the_source():
    (record,), _ = taken(ASKED._replace(client=THERE, server=HERE, transport=TCP))

    told = {name: record.tags[name] for name in ("direction", "src_ip", "src_port", "dst_ip", "dst_port", "transport")}
    assert told == {"direction": "incoming", "src_ip": "10.0.0.1", "src_port": "53", "dst_ip": "8.8.8.8",
                    "dst_port": "*", "transport": "tcp"}


def test_both_ends_on_53_are_both_told():
    (record,), _ = taken(ASKED._replace(client_port=53))

    assert (record.tags["src_port"], record.tags["dst_port"]) == ("53", "53")


def test_names_and_types_only_when_asked_for():
    other = ASKED._replace(question=question("y.org", 28))
    assert len(taken(ASKED, other)[0]) == 1

    records, _ = taken(ASKED, other, options=Options("box", dns_queries=True))
    assert {(r.fields["query_name"], r.fields["query_type"]) for r in records} == {("x.org", "A"), ("y.org", "AAAA")}


@pytest.mark.parametrize("exchange, options, reason", [
    (ASKED._replace(server=LOOP), OPTIONS, "loopback"),
    (ASKED._replace(client=packed("10.9.9.9")), OPTIONS, "forwarded"),
    (ASKED._replace(client=packed("0.0.0.0")), OPTIONS, "address"),
    (ASKED, Options("box", exclude=Exclusions.parse(["cidr=8.8.0.0/16"])), "excluded"),
    (ASKED, Options("box", exclude=Exclusions.parse(["direction=outgoing"])), "excluded"),
    (ASKED, Options("box", exclude=Exclusions.parse(["port=40000"])), "excluded"),
])
def test_what_nobody_wants_is_left_out_and_counted(exchange, options, reason):
    assert taken(exchange, options=options) == ([], Counter({reason: 1}))


def test_what_got_our_address_on_its_way_is_forwarded():
    """A query of a process here that happens to have the same bytes as another's here is not, nor one we answer."""
    masqueraded = ASKED._replace(behind=packed("172.17.0.2"))
    records, left_out = taken(masqueraded, masqueraded._replace(rcode=-1), ASKED, ASKED._replace(behind=LOOP),
                              masqueraded._replace(client=THERE, server=HERE))
    assert left_out == Counter(forwarded=2)
    assert Counter({r.tags["direction"]: r.fields["count"] for r in records}) == {"outgoing": 2, "incoming": 1}


queries = st.lists(st.tuples(st.sampled_from(["container", "here", "resolver"]), st.integers(0, 65535),
                             st.sampled_from(["x.org", "y.org"]), st.integers(0, 20 * 10**6)), max_size=30,
                   unique_by=lambda one: one[1])


@given(queries, st.booleans())
def test_every_query_is_counted_where_it_begins_and_only_there(given_queries, same_port):
    """Containers go out under our address; a resolver here asks on for them with numbers of its own."""
    container, exchanges, made, now_ns, expected = packed("172.17.0.2"), Exchanges(), flows(), 0, 0
    for what, number, name, later_ns in given_queries:
        now_ns += later_ns
        way = [HERE]
        if what == "container":
            way = [container, HERE]
        elif what == "resolver":
            question_to_us = Segment(UDP, container, 3000, HERE, 53, query(number ^ 1, name), True)
            exchanges.saw(7, question_to_us, now_ns)
        for step, client in enumerate(way):
            port = 4000 + (step if not same_port else 0)
            exchanges.saw(7, Segment(UDP, client, port, THERE, 53, query(number, name), True), now_ns + step * 30_000)
        for step, client in reversed(list(enumerate(way))):
            port = 4000 + (step if not same_port else 0)
            answer = Segment(UDP, THERE, 53, client, port, response(number, name), True)
            for done in exchanges.saw(7, answer, now_ns + 10**6 - step):
                made.add(done)
        expected += what != "container"
    records = made.take(1, lambda *_: None)
    assert sum(r.fields["count"] for r in records if r.tags["direction"] == "outgoing") == expected


def test_loopback_is_kept_when_asked_for():
    (record,), _ = taken(ASKED._replace(server=LOOP), options=Options("box", loopback=True))

    assert record.tags["src_ip_type"] == "loopback" and record.tags["direction"] == "incoming"


exchanges = st.lists(st.builds(lambda client, rcode, latency, transport, port: ASKED._replace(
    client=packed(client), rcode=rcode, latency_ns=latency, transport=transport, client_port=port),
    st.sampled_from(["10.0.0.1", "10.9.9.9", "127.0.0.1"]), st.sampled_from([-1, 0, 3]), st.integers(0, 10**9),
    st.sampled_from([UDP, TCP]), st.sampled_from([53, 40000, 50000])), max_size=40)


@given(exchanges, st.integers(1, 3))
def test_counts_out_are_counts_in_less_what_was_left_out(given_exchanges, max_flows):
    records, left_out = taken(*given_exchanges, options=Options("box", max_flows=max_flows))

    assert sum(r.fields["count"] for r in records) + left_out.total() == len(given_exchanges)
    assert len(records) <= max_flows
    assert all(r.fields["latency"] <= r.fields["latency_max"] for r in records)
    if not left_out["overflow"]:
        longest = max((e.latency_ns for e in given_exchanges if e.client == HERE), default=0)
        assert max((r.fields["latency_max"] for r in records), default=0) == longest


def test_what_the_options_say_counts_from_the_next_exchange_on():
    now = [OPTIONS]
    made = DnsFlows(lambda: now[0], lambda netns, address: address == HERE)
    made.add(ASKED)
    now[0] = Options("box", dns_queries=True, exclude=Exclusions.parse(["cidr=9.9.9.9/32"]))
    made.add(ASKED)
    made.add(ASKED._replace(server=packed("9.9.9.9")))

    assert [r.fields.get("query_name") for r in made.take(5, lambda netns, address: None)] == [None, "x.org"]
    assert made.left_out == {"excluded": 1}


def test_taken_is_gone():
    made = flows()
    made.add(ASKED)
    assert len(made.take(1, lambda *_: None)) == 1
    assert made.take(2, lambda *_: None) == []
