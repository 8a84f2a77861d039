"""What TCP carries, put together again from segments in any order, repeated, overlapping and lost."""

import random
import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from collector.protocols.packets import Segment
from collector.protocols.streams import MAX_WAITING_BYTES, MAX_WAITING_SEGMENTS, Connections, Messages, Stream
from tests.collector.wire import ACK, FIN, SYN, TCP, packed

CLIENT, SERVER = packed("10.0.0.1"), packed("10.0.0.2")
messages = st.lists(st.binary(max_size=400), max_size=12)


def framed(bodies):
    return b"".join(len(body).to_bytes(2) + body for body in bodies)


def segment(sequence, payload=b"", flags=ACK, port=5000):
    return Segment(TCP, CLIENT, port, SERVER, 53, payload, True, sequence & 0xFFFF_FFFF, flags)


def cut(data, rng):
    """(place, piece) for all of the data, some of it twice and overlapping."""
    cuts = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randrange(12)))})
    pieces = [(a, data[a:b]) for a, b in pairwise(cuts)]
    for _ in range(rng.randrange(4)):
        a = rng.randrange(len(data) + 1)
        pieces.append((a, data[a:a + rng.randrange(200)]))
    return pieces


@given(messages, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_messages_survive_any_split_order_and_repetition(bodies, first, rng):
    data = framed(bodies)
    pieces = cut(data, rng)
    rng.shuffle(pieces)
    connections = Connections()
    found = connections.add(0, segment(first, flags=SYN), 0)
    for at, piece in pieces:
        found += connections.add(0, segment(first + 1 + at, piece), 0)

    assert found == bodies
    assert connections.gaps == 0 and connections.held == 0


@given(messages, st.integers(0, 2**32 - 1))
def test_everything_twice_is_everything_once(bodies, first):
    """As on two interfaces, or on the way out and in."""
    data, connections, found = framed(bodies), Connections(), []
    for one in [segment(first, flags=SYN), *(segment(first + 1 + at, data[at:at + 7]) for at in range(0, len(data), 7)),
                segment(first + 1 + len(data), flags=FIN)]:
        for _ in range(2):
            found += connections.add(0, one, 0)

    assert found == bodies


def test_a_side_older_than_us_is_followed_from_whole_messages_on():
    connections = Connections()
    assert connections.add(0, segment(100, b"middle of a message"), 0) == []
    assert len(connections) == 0
    assert connections.add(0, segment(200, framed([b"a" * 20])), 0) == [b"a" * 20]
    assert connections.add(0, segment(222, framed([b"b" * 30])[:9]), 0) == []
    assert connections.add(0, segment(231, framed([b"b" * 30])[9:]), 0) == [b"b" * 30]


def test_the_same_addresses_in_two_namespaces_are_two_connections():
    connections = Connections()
    for scope in (1, 2):
        connections.add(scope, segment(0, flags=SYN), 0)
    assert connections.add(1, segment(1, framed([b"x" * 12])[:3]), 0) == []
    assert connections.add(2, segment(1, framed([b"y" * 12])), 0) == [b"y" * 12]


def test_a_new_connection_on_the_old_ports_begins_anew():
    connections = Connections()
    connections.add(0, segment(0, flags=SYN), 0)
    connections.add(0, segment(1, b"\xff\xff half a message"), 0)
    connections.add(0, segment(9_000_000, flags=SYN), 0)

    assert connections.add(0, segment(9_000_001, framed([b"x" * 12])), 0) == [b"x" * 12]
    assert connections.held == 0


def test_a_gap_that_is_never_filled_ends_the_side_and_is_counted():
    connections = Connections()
    connections.add(0, segment(0, flags=SYN), 0)
    for number in range(MAX_WAITING_SEGMENTS + 1):
        connections.add(0, segment(1000 + number, b"x"), 0)

    assert connections.gaps == 1 and len(connections) == 0 and connections.held == 0


def test_what_is_cut_short_ends_the_side():
    connections = Connections()
    connections.add(0, segment(0, flags=SYN), 0)
    connections.add(0, segment(1, b"\0\x20half")._replace(is_whole=False), 0)

    assert connections.gaps == 1


def test_idle_sides_are_forgotten_and_busy_ones_kept():
    connections = Connections()
    for port in (1, 2):
        connections.add(0, segment(0, flags=SYN, port=port), 10)
    connections.add(0, segment(1, b"\0\x10abc", port=1), 20)
    connections.expire(15)

    assert len(connections) == 1
    assert connections.add(0, segment(6, b"x" * 13, port=1), 20) == [b"abc" + b"x" * 13]


flags = st.sampled_from([SYN, ACK, FIN])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5000), st.binary(max_size=60), flags, st.booleans()),
                max_size=60), st.integers(0, 2**32 - 1))
def test_any_segments_hold_no_more_than_the_bounds(given_segments, base):
    connections = Connections(max_streams=2, max_bytes=500)
    for port, ahead, payload, flag, is_whole in given_segments:
        one = segment(base + ahead, payload, flag, port)._replace(is_whole=is_whole)
        connections.add(0, one, 0)

        assert len(connections) <= 2
        assert 0 <= connections.held <= 500 or len(connections) == 1
        sides = connections._sides.values()
        assert connections.held == sum(side.held for side in sides)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=30)), max_size=200))
def test_one_stream_waits_for_no_more_than_its_bound(pieces):
    stream = Stream(0)
    for sequence, payload in pieces:
        if stream.add(sequence, payload) is None:
            break
        assert 0 <= stream.waiting_bytes <= MAX_WAITING_BYTES


def test_a_message_byte_by_byte_takes_no_longer_than_twice_the_bytes_do():
    """Joined once: 64 KiB in single bytes joined each time would be 2 GB of copying."""
    body = random.Random(1).randbytes(65_535)
    begun = time.process_time()
    cutter, found = Messages(), []
    for byte in framed([body, body]):
        found += cutter.add(bytes([byte]))

    assert found == [body, body]
    assert time.process_time() - begun < 2
