"""DNS messages: what dnspython says of the same bytes, and nothing worse than None of any other bytes."""

import time

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
from hypothesis import given
from hypothesis import strategies as st

from collector.protocols.dns import Message, parse, question_text
from tests.collector.wire import name, opt, packed, query, question, record, response

A, CNAME, AAAA = 1, 5, 28
POINTER = b"\xc0\x0c"


def test_a_query_and_its_answer_have_the_same_question_whatever_its_case():
    asked, answered = parse(query(7, "WWW.Example.ORG")), parse(response(7, "www.eXample.org"))

    assert asked == Message(7, False, 0, question("www.example.org"))
    assert answered == asked._replace(is_response=True)


def test_types_are_not_letters():
    """65 is HTTPS and "A", 97 nothing and "a"."""
    assert parse(query(7, "a", 65)).question != parse(query(7, "a", 97)).question


def test_addresses_have_the_shortest_ttl_of_the_way_there():
    message = response(7, "www.example.org", answers=[
        record(POINTER, CNAME, name("edge.example.net"), ttl=30),
        record(name("edge.example.net"), A, bytes([192, 0, 2, 1])),
        record(name("edge.example.net"), AAAA, packed("2001:db8::1"), ttl=20)])

    assert parse(message).addresses == ((packed("192.0.2.1"), 30), (packed("2001:db8::1"), 20))


def test_addresses_of_other_sections_and_other_classes_are_nobodys():
    message = response(7, "www.example.org", additionals=[record(name("ns.example.org"), A, bytes([192, 0, 2, 9]))],
                       answers=[record(POINTER, A, bytes(4), class_=3), record(POINTER, A, bytes(5))])

    assert parse(message).addresses == ()


def test_edns_adds_the_upper_bits_of_the_rcode():
    assert parse(response(7, "x.org", 0, additionals=[opt(1)])).rcode == 16  # BADVERS
    assert parse(response(7, "x.org", 7, additionals=[record(b"\0", 16, b""), opt(1)])).rcode == 23


def test_what_is_cut_short_keeps_what_was_before():
    message = response(7, "www.example.org", 2, [record(POINTER, A, bytes(4))], [opt(1)])
    for length in range(len(message)):
        got = parse(message[:length])
        if length < 12 + len(question("www.example.org")):
            assert got is None
        else:
            assert (got.rcode & 15, got.question) == (2, question("www.example.org"))


def test_a_response_may_repeat_no_question():
    assert parse(bytes([0, 7, 0x80, 1]) + bytes(8)) == Message(7, True, 1, b"")
    assert parse(bytes([0, 7, 0, 0]) + bytes(8)) is None


names = st.lists(st.binary(min_size=1, max_size=20), max_size=5).map(lambda labels: dns.name.Name([*labels, b""]))
addresses = st.lists(st.tuples(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.integers(0, 2**31 - 1)), max_size=6)


@given(names, st.integers(0, 4095), addresses, st.integers(0, 0xFFFF))
def test_dnspython_and_we_agree(owner, rcode, given_addresses, number):
    asked = dns.message.make_query(owner, "A", id=number, use_edns=0)
    answer = dns.message.make_response(asked)
    answer.set_rcode(rcode)
    for address, ttl in given_addresses:
        kind = "A" if address.version == 4 else "AAAA"
        answer.answer.append(dns.rrset.from_text(owner, ttl, "IN", kind, str(address)))
    ours, theirs = parse(answer.to_wire(max_size=65_535)), dns.message.from_wire(answer.to_wire(max_size=65_535))

    assert (ours.id, ours.is_response, ours.rcode) == (theirs.id, bool(theirs.flags & dns.flags.QR), theirs.rcode())
    assert ours.question == parse(asked.to_wire()).question
    found = {str(r) for rrset in theirs.answer for r in rrset}
    assert {a for a, _ in ours.addresses} == {packed(text) for text in found}
    text, kind = question_text(ours.question)
    assert kind == "A"
    assert text == (owner.to_text(omit_final_dot=True).lower() if owner != dns.name.root else ".")


SEEDS = (query(1, "www.example.org"), response(1, "a.b", 3, [record(POINTER, A, bytes(4))], [opt(2)]),
         response(1, "a.b", answers=[record(b"\xc0\xff", 16, b"x" * 200)] * 3))


@given(st.binary(max_size=300) | st.builds(lambda seed, at, junk: seed[:at] + junk + seed[at + len(junk):],
                                           st.sampled_from(SEEDS), st.integers(0, 200), st.binary(max_size=8)))
def test_any_bytes_are_a_message_of_those_bytes_or_none(wire):
    got = parse(wire)

    if got:
        assert got.id == int.from_bytes(wire[:2]) and 0 <= got.rcode < 4096
        assert len(got.question) <= 259 and got.question[-4:] in wire
        text, kind = question_text(got.question)
        assert text.isascii() and kind.isascii()


def test_the_worst_message_takes_milliseconds():
    """65,535 bytes of records without data, and of names as long as they may be."""
    header = b"\0\1\x80\0\0\0" + b"\xff\xff" * 3
    for body in (bytes(65_523), (b"\x3f" + b"x" * 63) * 1024, b"\1x" * 32_000):
        begun = time.process_time()
        parse(header + body)
        assert time.process_time() - begun < 0.2
