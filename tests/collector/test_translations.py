"""Translated destinations: the book that keeps them, and the tracker's words."""

import socket
import struct

import pytest

from collector.ctnetlink import Translation, translation
from collector.enrich.translations import Book

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
    book.end(7, to(ONE, 9), 20_000.0)
    assert len(book) == 0


def test_it_is_bounded_and_says_so():
    book = Book(bound=3)
    for port in range(10):
        book.add(7, to(ONE, 1000 + port))
    assert (len(book), book.evicted) == (3, 7)
    assert book.find(7, 6, A, 1009, VIRTUAL, 80) == (ONE, 8080)


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
