"""What is said of records is true of records: every name they have is described, with its type, and no other is."""

from pathlib import Path

import pytest

from collector import described
from collector.command_lines import Typed, record
from collector.config import Options
from collector.enrich.stage import _WHAT
from collector.flows import ENRICHER_TAGS, aggregate
from collector.pipeline import DATASETS
from collector.redaction import NO_REDACTIONS
from collector.sampling import SAMPLING
from tests.collector import test_dns_flows as dns
from tests.collector import test_flows as net
from tests.collector import test_http_flows as http

TYPES = {"integer": int, "text": str, "boolean": bool}
NAMED = {"dst_domain": "example.org"}
# What the pipeline's last stage adds, and `containers`.
MORE = {"container_id", "cgroup", SAMPLING, *ENRICHER_TAGS}


def netflow():
    deltas = (net.CURL._replace(rtt_us=80, rtt_var_us=40, rtt_samples=1, established=1, closed=1, retransmits=1),
              net.CURL._replace(transport="udp"))
    return aggregate(deltas, Options("box"), 1, name_of=lambda netns, address: "example.org")


def httpflow():
    return http.taken(http.seen(), http.seen(grpc_status=0, host="example.org"))[0]


def dnsflow():
    return dns.taken(dns.ASKED, options=Options("box", dns_queries=True, dns_percentiles=True))[0] + \
        dns.taken(dns.ASKED)[0]


def bash():
    return [record(Typed(1, 7, 5, 0, "bash", b"ls", False), "root", "box", 1, NO_REDACTIONS)]


@pytest.mark.parametrize("made", [netflow, httpflow, dnsflow, bash])
def test_every_name_of_a_record_is_described_and_no_other(made):
    records, said = made(), described.of(made.__name__)
    tags, fields = ({one.name: one for one in said if one.kind == kind} for kind in ("tag", "field"))

    assert {name for r in records for name in r.tags} == tags.keys() - (MORE - {"dst_domain"} if records else ())
    assert {name for r in records for name in r.fields} == fields.keys()
    assert all(type(value) is TYPES[fields[name].type.split(",")[0]] for r in records
               for name, value in r.fields.items())


@pytest.mark.parametrize("made", [netflow, httpflow, dnsflow, bash])
def test_what_is_not_optional_is_in_every_record(made):
    for one in described.of(made.__name__):
        for each in made():
            there = each.tags if one.kind == "tag" else each.fields
            assert one.optional or one.name in there, one


def test_the_tags_of_kubernetes_are_those_the_stage_adds():
    told = {one.name for one in described.TABLE if "_k8s_" in one.name}
    assert told == {f"{side}_k8s_{what}" for side in ("src", "dst") for what in _WHAT}


def test_the_page_is_what_the_command_prints():
    page = Path(__file__).parents[2] / "docs" / "datasets.md"
    assert page.read_text() == described.markdown(), "kcompat datasets --markdown >docs/datasets.md"


def test_there_is_nothing_of_datasets_there_are_not():
    assert set(described.ALL) == set(DATASETS) == set(described.as_json())
    assert all(set(one.datasets) <= set(DATASETS) and one.text for one in described.TABLE)
