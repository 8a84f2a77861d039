"""Names for addresses: by namespace, for as long as their TTL within bounds, and never more than the bound."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from collector.enrich.domains import LONGEST_S, SAID_S, SHORTEST_S, Domains, Said
from tests.collector.wire import question

ONE, TWO = bytes(15) + b"\1", bytes(15) + b"\2"


def test_a_name_is_known_in_its_namespace_only():
    domains = Domains()
    domains.learn(7, question("example.org"), [(ONE, 300)], now_s=0)

    assert domains.name(7, ONE, 1) == "example.org"
    assert domains.name(8, ONE, 1) is None and domains.name(7, TWO, 1) is None


def test_many_questions_are_answered_as_one_is():
    domains = Domains()
    domains.learn(7, question("example.org"), [(ONE, 3600)])
    domains.say(7, TWO, "said.example", Said.SNI)
    name = domains.names()

    for netns in (7, 8):
        assert [name(netns, address) for address in (ONE, TWO, bytes(16))] == [
            domains.name(netns, address) for address in (ONE, TWO, bytes(16))]
    assert name(7, TWO) == "said.example"


def test_ttls_are_kept_between_a_minute_and_an_hour():
    domains = Domains()
    for ttl_s, kept_s in ((0, SHORTEST_S), (300, 300), (2**32 - 1, LONGEST_S)):
        domains.learn(7, question("example.org"), [(ONE, ttl_s)], now_s=1000)

        assert domains.name(7, ONE, 1000 + kept_s - 0.1) == "example.org"
        assert domains.name(7, ONE, 1000 + kept_s) is None


def test_what_clients_call_a_server_counts_where_no_answer_does_and_sni_before_host():
    domains = Domains()
    domains.say(7, ONE, "Front.Example.ORG.", Said.SNI, now_s=0)
    domains.say(7, ONE, "host.example", Said.HOST, now_s=1)
    assert domains.name(7, ONE, 2) == "front.example.org" and domains.name(8, ONE, 2) is None

    domains.learn(7, question("dns.example"), [(ONE, 60)], now_s=2)
    assert domains.name(7, ONE, 3) == "dns.example" and domains.name(7, ONE, 70) == "front.example.org"

    domains.say(7, ONE, "host.example", Said.HOST, now_s=SAID_S)
    assert domains.name(7, ONE, SAID_S + 1) == "host.example" and domains.name(7, ONE, 2 * SAID_S) is None


def test_what_clients_say_is_bounded_and_addresses_are_no_names():
    domains = Domains(bound=2)
    for n in range(5):
        domains.say(7, bytes(15) + bytes([n]), "a.example", Said.SNI, now_s=0)
    for said in ("10.0.0.1", "[::1]", "localhost", "a b.example", "x\x1b.example", "", "." * 5, "a." * 200 + "example"):
        domains.say(8, ONE, said, Said.HOST, now_s=0)

    assert [n for n in range(5) if domains.name(7, bytes(15) + bytes([n]), 1)] == [3, 4]
    assert domains.name(8, ONE, 1) is None


def test_a_namespace_knows_nothing_of_one_before_that_had_its_number():
    domains = Domains()
    for netns in (7, 8):
        domains.learn(netns, question("example.org"), [(ONE, 300)], now_s=0)
        domains.say(netns, TWO, "said.example", Said.SNI, now_s=0)
    domains.end(7)
    domains.begin({8})
    assert domains.name(7, ONE, 1) == "example.org"

    domains.begin({7, 8})
    assert domains.name(7, ONE, 1) is None and domains.name(7, TWO, 1) is None
    assert domains.name(8, ONE, 1) == "example.org" and domains.name(8, TWO, 1) == "said.example"

    domains.learn(7, question("another.org"), [(ONE, 300)], now_s=0)
    domains.begin({7, 8})
    assert domains.name(7, ONE, 1) == "another.org"


def test_the_last_name_wins():
    domains = Domains()
    domains.learn(7, question("a.example"), [(ONE, 300)], now_s=0)
    domains.learn(7, question("b.example"), [(ONE, 300)], now_s=1)

    assert domains.name(7, ONE, 2) == "b.example"


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([ONE, TWO, bytes(16)]), st.sampled_from("abc"))),
       st.integers(1, 6))
def test_never_more_than_the_bound_and_the_longest_unheard_goes_first(learnt, bound):
    domains, model = Domains(bound), OrderedDict()
    for netns, address, name in learnt:
        domains.learn(netns, question(name), [(address, 300)], now_s=0)
        model[netns, address] = name
        model.move_to_end((netns, address))
        while len(model) > bound:
            model.popitem(last=False)

    assert {key: domains.name(*key, 1) for key in model} == dict(model)
    assert len(domains) == len(model)
