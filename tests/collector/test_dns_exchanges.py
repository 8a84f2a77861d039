"""Queries and what became of them: each once, with the right latency, whatever else passes by."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.dns_exchanges import TIMEOUT_NS, Exchanges
from collector.protocols.packets import Segment
from tests.collector.wire import SYN, TCP, UDP, packed, query, question, response

CLIENT, SERVER = packed("10.0.0.1"), packed("10.0.0.2")
MS = 10**6


def asks(number=1, text="x.org", port=5000, transport=UDP, **fields):
    return Segment(transport, CLIENT, port, SERVER, 53, query(number, text), True)._replace(**fields)


def answers(number=1, text="x.org", rcode=0, port=5000, transport=UDP, **fields):
    return Segment(transport, SERVER, 53, CLIENT, port, response(number, text, rcode), True)._replace(**fields)


def seen(*timed, exchanges=None):
    exchanges = Exchanges() if exchanges is None else exchanges
    return [done for time_ns, segment in timed for done in exchanges.saw(7, segment, time_ns)]


def test_an_answer_finishes_its_query_with_the_time_between():
    (done,) = seen((100, asks()), (100 + 3 * MS, answers(rcode=3)))

    assert done == (7, CLIENT, 5000, SERVER, 53, UDP, 3, 3 * MS, question("x.org"), (), b"")


def test_a_query_seen_thrice_and_answered_twice_is_one():
    """As on a bridge and the veth before it; the copies may even come after the answer."""
    done = seen((0, asks()), (10, asks()), (20, answers()), (30, answers()), (40, asks()), (50, answers()))

    assert [d.latency_ns for d in done] == [20]


def test_of_many_ports_one_is_followed_and_no_query_of_another_is_said_to_have_no_answer():
    exchanges = Exchanges()
    seen(*[(0, asks(port=port)) for port in range(5000, 5016)], exchanges=exchanges)
    exchanges.sample(8)
    assert len(exchanges) == 2
    done = seen(*[(MS, answers(port=port)) for port in range(5000, 5016)], exchanges=exchanges)
    done += seen(*[(2 * MS, asks(port=port)) for port in range(6000, 6016)], exchanges=exchanges)
    done += exchanges.expired(2 * TIMEOUT_NS)

    assert [(d.client_port, d.rcode) for d in done] == [(5000, 0), (5008, 0), (6000, -1), (6008, -1)]
    assert exchanges.unasked == 0
    exchanges.sample(1)
    assert len(seen((0, asks(port=7001)), (1, answers(port=7001)), exchanges=exchanges)) == 1


def test_the_same_numbers_again_later_are_another_query():
    done = seen((0, asks()), (MS, answers()), (100 * MS, asks()), (102 * MS, answers()))

    assert [d.latency_ns for d in done] == [MS, 2 * MS]


def test_a_query_sent_again_waits_since_it_was_first_sent():
    (done,) = seen((0, asks()), (5000 * MS, asks()), (5001 * MS, answers()))

    assert done.latency_ns == 5001 * MS


def test_queries_that_differ_in_anything_are_not_taken_for_each_other():
    exchanges = Exchanges()
    seen((0, asks(1)), (0, asks(2)), (0, asks(1, port=5001)), exchanges=exchanges)
    assert len(seen((1, answers(2)), exchanges=exchanges)) == 1
    assert exchanges.saw(8, answers(1), 1) == []  # another namespace
    assert len(seen((1, answers(1, port=5001)), (2, answers(1)), exchanges=exchanges)) == 2


def test_an_answer_to_another_question_is_none():
    exchanges = Exchanges()
    assert seen((0, asks(text="x.org")), (1, answers(text="y.org")), exchanges=exchanges) == []
    assert exchanges.unasked == 1 and len(exchanges) == 1
    # A server that understands nothing repeats nothing.
    formerr = answers()._replace(payload=bytes([0, 1, 0x80, 1]) + bytes(8))
    assert [d.rcode for d in seen((2, formerr), exchanges=exchanges)] == [1]


def test_no_answer_in_time_is_minus_one():
    exchanges = Exchanges()
    seen((0, asks(1)), (2 * MS, asks(2)), exchanges=exchanges)
    assert list(exchanges.expired(TIMEOUT_NS)) == []
    (late,) = exchanges.expired(TIMEOUT_NS + MS)
    assert (late.rcode, late.latency_ns, late.question) == (-1, 0, question("x.org"))
    (later,) = seen((TIMEOUT_NS + 3 * MS, answers(2)), exchanges=exchanges)
    assert later.rcode == -1 and len(exchanges) == 0


def test_a_clock_set_back_does_not_leave_queries_waiting_for_ever():
    exchanges = Exchanges()
    seen((10**18, asks()), exchanges=exchanges)
    assert [d.rcode for d in exchanges.expired(10**18 - 3600 * 10**9)] == [-1]


def test_who_asks_from_port_53_is_still_the_client():
    done = seen((0, asks(port=53)), (5, answers(port=53)))

    assert [(d.client, d.server, d.client_port) for d in done] == [(CLIENT, SERVER, 53)]


US = packed("10.0.0.9")


@pytest.mark.parametrize("later_ns, changed, behind", [
    (20_000, {}, CLIENT), (10 * MS, {}, CLIENT), (20_000, {"source_port": 61000}, CLIENT),
    (10 * MS + 1, {}, b""), (20_000, {"source": CLIENT, "source_port": 61000}, b""),
    (20_000, {"payload": query(2, "x.org")}, b""), (20_000, {"payload": query(1, "y.org")}, b""),
    (20_000, {"destination": packed("10.0.0.3")}, b""),
], ids=["the same bytes", "in time", "another port", "too late", "the same client", "another number",
        "another question", "another server"])
def test_the_same_bytes_from_another_a_moment_later_may_be_a_translation(later_ns, changed, behind):
    there = asks()._replace(**{"source": US} | changed)
    exchanges = Exchanges()
    seen((0, asks()), (later_ns, there), exchanges=exchanges)
    told = {e.client + e.client_port.to_bytes(2): e.behind for e in exchanges.expired(2 * TIMEOUT_NS)}
    assert told == {CLIENT + (5000).to_bytes(2): b"", there.source + there.source_port.to_bytes(2): behind}


def test_a_translation_is_told_with_its_answer_and_each_query_has_one_only():
    exchanges, others = Exchanges(), [US, packed("10.0.0.8")]
    seen((0, asks()), *((1, asks(source=one)) for one in others), exchanges=exchanges)
    assert exchanges.saw(8, asks(source=US), 2) == []  # another namespace
    done = seen(*((3, answers(destination=one)) for one in (*others, CLIENT)), exchanges=exchanges)
    assert [e.behind for e in done] == [CLIENT, b"", b""]


def test_what_passes_is_forgotten():
    exchanges = Exchanges()
    seen(*((n, asks(n % 65536, f"x{n}.org")) for n in range(10_000)), exchanges=exchanges)
    assert len(exchanges._passing) == 8192
    seen((11 * MS + 10_000, asks(1, "last.org")), exchanges=exchanges)
    assert len(exchanges._passing) == 1


def test_a_message_to_the_wrong_end_is_none():
    assert seen((0, answers()._replace(payload=query(1, "x.org"))), (1, answers())) == []


def test_messages_over_tcp_split_anywhere_and_several_in_one():
    exchanges, found = Exchanges(), []
    both = b"".join(len(m).to_bytes(2) + m for m in (query(1, "x.org"), query(2, "x.org")))
    back = b"".join(len(m).to_bytes(2) + m for m in (response(2, "x.org", 3), response(1, "x.org")))
    found += exchanges.saw(7, asks(transport=TCP, payload=b"", flags=SYN, sequence=99), 0)
    for at in range(0, len(both), 5):
        found += exchanges.saw(7, asks(transport=TCP, payload=both[at:at + 5], sequence=100 + at), at)
    found += exchanges.saw(7, answers(transport=TCP, payload=b"", flags=SYN, sequence=0), 0)
    found += exchanges.saw(7, answers(transport=TCP, payload=back, sequence=1), 1000)

    assert [(d.transport, d.rcode) for d in found] == [(TCP, 3), (TCP, 0)]
    # A query is there with its last byte.
    assert [d.latency_ns for d in found] == [1000 - (len(both) - 1) // 5 * 5, 1000 - (len(both) // 2 - 1) // 5 * 5]


def test_what_finds_no_room_is_counted_and_not_answered():
    exchanges = Exchanges(max_pending=2)
    seen(*((0, asks(number)) for number in range(3)), exchanges=exchanges)

    assert exchanges.lost == Counter({"dns queries": 1})
    assert [len(seen((1, answers(number)), exchanges=exchanges)) for number in range(3)] == [1, 1, 0]


steps = st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.sampled_from(["x.org", "y.org"]), st.integers(0, 5),
                           st.integers(0, 8 * 10**9)), max_size=40)


@given(steps)
def test_every_query_ends_once(given_steps):
    """Answered, in vain, replaced or still waiting: nothing twice, nothing lost, whatever comes in whatever order."""
    exchanges, now, finished, sent = Exchanges(), 0, [], set()
    for is_query, number, text, rcode, later in given_steps:
        now += later
        finished += exchanges.expired(now)
        if is_query:
            finished += exchanges.saw(7, asks(number, text), now)
            sent.add((number, text, now))
        else:
            finished += exchanges.saw(7, answers(number, text, rcode), now)

    assert len(finished) + exchanges.lost.total() + len(exchanges) <= len(sent)
    finished += exchanges.expired(now + 2 * TIMEOUT_NS)
    assert len(exchanges) == 0
    assert all(0 <= d.latency_ns <= TIMEOUT_NS and (d.rcode >= 0 or d.latency_ns == 0) for d in finished)
    if given_steps and any(is_query for is_query, *_ in given_steps):
        assert finished or exchanges.lost


@given(st.lists(st.tuples(st.sampled_from([UDP, TCP]), st.binary(max_size=100), st.sampled_from([53, 5000]),
                          st.sampled_from([53, 5000]), st.booleans(), st.integers(0, 100), st.sampled_from([0, SYN])),
                max_size=30))
def test_any_payloads_are_harmless(segments):
    exchanges = Exchanges(max_pending=3)
    for time_ns, (transport, payload, source, destination, is_whole, sequence, flags) in enumerate(segments):
        exchanges.saw(7, Segment(transport, CLIENT, source, SERVER, destination, payload, is_whole, sequence, flags),
                      time_ns)
        assert len(exchanges) <= 3


def test_what_was_answered_is_forgotten_when_no_copy_can_come_any_more():
    exchanges = Exchanges()
    for number in range(100):
        seen((0, asks(number)), (MS, answers(number)), exchanges=exchanges)
    assert not list(exchanges.expired(MS + TIMEOUT_NS)) and len(exchanges._answered) == 100
    assert not list(exchanges.expired(MS + TIMEOUT_NS + 1)) and not exchanges._answered
