"""Translated destinations: the book that keeps them, and the tracker's words."""

import errno
import socket
import struct
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from collector import nf_conn, trackers
from collector.ctnetlink import translation
from collector.enrich.translation_book import Book
from collector.translation import Translation
from kcompat.errors import UnknownField
from kcompat.fields import CATALOGUE, find
from kcompat.offsets import Offset, Offsets

MAPPED = bytes(10) + b"\xff\xff"
A, B, VIRTUAL, ONE, TWO = (MAPPED + bytes([10, 0, 0, host]) for host in (1, 2, 80, 101, 102))


def to(real, port=4000, source=A):
    return Translation(6, source, port, VIRTUAL, 80, real, 8080)


def test_a_connection_is_found_by_its_own_port():
    book = Book()
    book.add(7, to(ONE, 4000))
    book.add(7, to(TWO, 4001))
    assert book.find(7, 6, A, 4000, VIRTUAL, 80) == (ONE, 8080)
    assert book.find(7, 6, A, 4001, VIRTUAL, 80) == (TWO, 8080)
    for other in ((8, 6, A, 4000), (7, 17, A, 4000), (7, 6, B, 4000), (7, 6, A, 4002)):
        assert book.find(*other, VIRTUAL, 80) is None


def test_merged_connections_went_where_all_went_or_nobody_knows():
    book = Book()
    book.add(7, to(ONE, 4000))
    book.add(7, to(TWO, 4000, B))
    assert book.find(7, 6, A, 65535, VIRTUAL, 80) is None
    assert book.find(7, 6, A, 65535, VIRTUAL, 80, any_port=True) == (ONE, 8080)
    book.add(7, to(TWO, 4001))
    assert book.find(7, 6, A, 65535, VIRTUAL, 80, any_port=True) is None
    book.add(7, to(ONE, 4001))
    assert book.find(7, 6, A, 65535, VIRTUAL, 80, any_port=True) == (ONE, 8080)


def test_the_end_is_remembered_a_while_and_a_successor_is_not_ended():
    book = Book()
    book.add(7, to(ONE))
    book.end(7, to(ONE), 0.0)
    assert book.find(7, 6, A, 4000, VIRTUAL, 80) == (ONE, 8080)
    book.add(7, to(TWO))
    book.end(7, to(ONE, 9), 10_000.0)
    assert book.find(7, 6, A, 4000, VIRTUAL, 80) == (TWO, 8080)
    book.end(7, to(TWO), 10_000.0)
    book.add(7, to(TWO))
    book.end(7, to(ONE, 9), 20_000.0)
    assert book.find(7, 6, A, 4000, VIRTUAL, 80) == (TWO, 8080)
    book.end(7, to(TWO), 20_000.0)
    book.end(7, to(ONE, 9), 30_000.0)
    assert len(book) == 0


def test_it_is_bounded_and_says_so():
    book = Book(bound=3)
    for port in range(10):
        book.add(7, to(ONE, 1000 + port))
    assert (len(book), book.evicted) == (3, 7)
    assert book.find(7, 6, A, 1009, VIRTUAL, 80) == (ONE, 8080)


def test_what_is_forgotten_is_gone_and_nothing_else():
    book = Book()
    for netns in (7, 8):
        book.add(netns, to(ONE, 4000))
        book.end(netns, to(ONE, 4000), 0.0)
    book.forget({7})
    assert len(book) == 1 and book.find(8, 6, A, 4000, VIRTUAL, 80) == (ONE, 8080)

    book.add(7, to(ONE, 4000))
    book.end(7, to(ONE, 9), 10_000.0)
    assert book.find(7, 6, A, 65535, VIRTUAL, 80, any_port=True) == (ONE, 8080)


@pytest.fixture
def listener(monkeypatch):
    """A namespace's tracker that has nothing to say; one that is not asked what it knows."""
    monkeypatch.setattr(trackers, "is_loaded", lambda: True)
    monkeypatch.setattr(trackers, "_ask", lambda *_: None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as waiting:
        yield SimpleNamespace(fileno=waiting.fileno, events=list, close=lambda: None)


def test_what_was_told_of_a_namespace_is_forgotten_when_another_has_its_number(monkeypatch, listener):
    there, forgotten = {7: Path("/7")}, []
    monkeypatch.setattr(trackers, "doors", lambda: dict(there))
    monkeypatch.setattr(trackers, "visit", lambda *_: listener)
    with closing(trackers.Trackers(lambda *_: None, forgotten.append)) as made:
        for change in (dict, there.clear, lambda: there.update({7: Path("/8")}), dict):
            change()
            made.rescan()
    assert forgotten == [{7}]


def test_a_namespace_that_could_not_be_asked_for_a_moment_is_asked_later(monkeypatch, caplog, listener):
    outcomes = [OSError(errno.EMFILE, "Too many open files")] * 2 + [listener]

    def visit(door, work):
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(trackers, "doors", lambda: {7: Path("/7")})
    monkeypatch.setattr(trackers, "visit", visit)
    with closing(trackers.Trackers(lambda *_: None, lambda _: None)) as made:
        counts = []
        for _ in range(3):
            made.rescan()
            counts.append((made.namespaces, made.refused))

    assert counts == [(0, 1), (0, 1), (1, 0)]
    assert caplog.text.count("of network namespace 7 stay unknown: Too many open files") == 1


def attribute(kind, value):
    return struct.pack("<HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def side(kind, source, destination, ports=(1000, 80), protocol=6, first=1):
    numbers = attribute(1, bytes([protocol]))
    if ports:
        numbers += attribute(2, struct.pack(">H", ports[0])) + attribute(3, struct.pack(">H", ports[1]))
    addresses = attribute(first, source) + attribute(first + 1, destination)
    return attribute(kind | 0x8000, attribute(1 | 0x8000, addresses) + attribute(2 | 0x8000, numbers))


def told(status, *sides):
    return bytes(4) + b"".join(sides) + attribute(3, struct.pack(">I", status))


def test_a_translation_is_what_the_reply_comes_from():
    body = told(1 << 5, side(1, A[12:], VIRTUAL[12:]), side(2, ONE[12:], A[12:], (8080, 1000)))
    assert translation(body) == Translation(6, A, 1000, VIRTUAL, 80, ONE, 8080)


def test_ipv6_has_attributes_of_its_own():
    ends = [socket.inet_pton(socket.AF_INET6, f"fd00::{n}") for n in (1, 2, 3)]
    body = told(1 << 5, side(1, ends[0], ends[1], first=3), side(2, ends[2], ends[0], (8080, 1000), first=3))
    assert translation(body) == Translation(6, ends[0], 1000, ends[1], 80, ends[2], 8080)


@pytest.mark.parametrize("body", [
    bytes(4),
    told(1 << 4, side(1, A[12:], VIRTUAL[12:]), side(2, VIRTUAL[12:], B[12:])),
    told(1 << 5, side(1, A[12:], VIRTUAL[12:], None, 1), side(2, ONE[12:], A[12:], None, 1)),
    told(1 << 5, side(1, A[12:], VIRTUAL[12:])),
    told(1 << 5, side(1, A[12:], VIRTUAL[12:]), side(2, VIRTUAL[12:], A[12:], (80, 1000))),
])
def test_what_is_no_translated_destination_is_passed_over(body):
    assert translation(body) is None


EVENT = struct.Struct("<Q16s16s16sI4HBB2x")


def handed(*, source=A[12:], destination=VIRTUAL[12:], real=ONE[12:], real_port=8080, family=2, ended=0):
    """A struct told, as nf_conn's programs hand it over; rings pad what is in them."""
    return EVENT.pack(1, source, destination, real, 7, 1000, 80, real_port, family, 6, ended) + bytes(4)


def test_what_a_program_hands_over_is_what_ctnetlink_says():
    body = told(1 << 5, side(1, A[12:], VIRTUAL[12:]), side(2, ONE[12:], A[12:], (8080, 1000)))
    assert nf_conn.event(handed()) == (7, False, translation(body))
    ends = [socket.inet_pton(socket.AF_INET6, f"fd00::{n}") for n in (1, 2, 3)]
    body = told(1 << 5, side(1, ends[0], ends[1], first=3), side(2, ends[2], ends[0], (8080, 1000), first=3))
    assert nf_conn.event(handed(source=ends[0], destination=ends[1], real=ends[2], family=10, ended=1)) == (
        7, True, translation(body))


@pytest.mark.parametrize("data", [
    b"", handed()[:71], bytes(80), b"\xff" * 80, handed(family=7), handed(real=VIRTUAL[12:], real_port=80)])
def test_what_no_program_hands_over_is_passed_over(data):
    assert nf_conn.event(data) is None


def offsets(*but):
    """Of every field but some, which lie wherever."""
    return Offsets(Offset.known(field, 8 * at, "test", width=field.width) for at, field in enumerate(CATALOGUE)
                   if field not in but)


@pytest.mark.parametrize("name", ["nf_conn.status", "tuplehash1.tuple", "src.l3num", "nf_conn.ct_net", "net.ns.inum"])
def test_without_a_field_it_needs_there_is_no_program(name):
    with pytest.raises(UnknownField, match=f"nf_conn is not loaded: .*{name}"):
        nf_conn.render(offsets(find(name)))


def test_a_kernel_without_namespaces_and_one_whose_packets_are_not_known_have_programs():
    assert "HAVE_nf_conn__ct_net" in nf_conn.render(offsets(find("_nfct"))).partition("#include")[0]
    absent = [Offset.absent(find(name), "test", "no namespaces") for name in ("nf_conn.ct_net", "net.ns.inum")]
    text = nf_conn.render(Offsets([*offsets(*(o.field for o in absent)).values(), *absent]))
    assert "HAVE_nf_conn__ct_net" not in text.partition("#include")[0]
