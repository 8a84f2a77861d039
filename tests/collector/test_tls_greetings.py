"""Hellos in pieces: OpenSSL's own, cut anywhere."""

import ssl
from contextlib import suppress
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from collector.http_exchanges import Ends
from collector.protocols.tls import server_name
from collector.tls_greetings import LONGEST, Greetings

ENDS = Ends(bytes(16), 40000, bytes(16), 443, 7, 1, "curl", True, False)


def hello(name="front.example.org"):
    """What OpenSSL sends first."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


HELLO = hello()


def test_a_hello_in_one_piece_names_its_server():
    greetings = Greetings()
    greetings.began("a", ENDS)

    assert greetings.went_on("a", 0, HELLO) == (ENDS, "front.example.org")
    assert "a" in greetings and greetings.went_on("a", len(HELLO), HELLO) is None


@given(cuts=st.lists(st.integers(0, len(HELLO)), max_size=8))
def test_however_it_is_cut_it_is_told_once(cuts):
    greetings = Greetings()
    greetings.began("a", ENDS)
    places = sorted({0, *cuts, len(HELLO)})
    told = [greetings.went_on("a", begin, HELLO[begin:end]) for begin, end in pairwise(places)]

    assert [one for one in told if one] == [(ENDS, "front.example.org")]


@given(data=st.binary(max_size=600), gap=st.integers(1, 9))
def test_what_is_no_hello_or_has_a_gap_tells_nothing(data, gap):
    greetings = Greetings()
    greetings.began("a", ENDS)
    greetings.began("b", ENDS)

    assert greetings.went_on("c", 0, HELLO) is None
    assert greetings.went_on("a", gap, HELLO) is None and greetings.went_on("a", 0, HELLO) is None
    said = greetings.went_on("b", 0, data)
    assert (said[1] if said else None) == server_name(data)


def test_what_is_held_is_bounded():
    greetings = Greetings(bound=2)
    for connection in "abc":
        greetings.began(connection, ENDS)
    assert "a" not in greetings and "b" in greetings and "c" in greetings

    record = b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"
    for at in range(0, LONGEST + 2000, 1000):
        assert greetings.went_on("b", at, (record + bytes(991)) if at == 0 else bytes(1000)) is None
    assert greetings.went_on("b", LONGEST + 3000, HELLO) is None
