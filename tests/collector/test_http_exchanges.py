"""Pieces of HTTP connections: in any split, late, twice, or lost, they never make an exchange that was not."""

import itertools
import random

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from collector.http_exchanges import IDLE_NS, Ends, HttpConnections, Piece
from collector.protocols.http2 import PREFACE

SERVER = Ends(b"a" * 16, 80, b"b" * 16, 40_000, 1, 7, "nginx", False, False)
CLIENT = SERVER._replace(local_port=40_000, remote_port=80, asks=True)
PATHS = [f"/{number}" for number in range(6)]


def conversation(paths):
    requests = [f"POST {path}?q HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /".encode() for path in paths]
    responses = [b"HTTP/1.1 20%d Fine\r\nContent-Length: 9\r\n\r\nHTTP/1.1 " % (n % 4) for n in range(len(paths))]
    return requests, responses


def cut(messages, written, begin_ns, rng, smallest=1):
    """Pieces of each message, in order; each message's first one at a time of its own."""
    offset = 0
    for number, message in enumerate(messages):
        at = 0
        while at < len(message):
            size = rng.randrange(smallest, 30)
            time_ns = begin_ns + 1000 * number + at
            yield Piece("c", time_ns, written, offset + at, message[at:at + size], 0)
            at += size
        offset += len(message)


def pieces_of(ends, rng, paths=PATHS, smallest=1):
    requests, responses = conversation(paths)
    made = [*cut(requests, ends.asks, 0, rng, smallest), *cut(responses, not ends.asks, 500, rng, smallest)]
    return sorted(made, key=lambda piece: piece.time_ns)


def with_other_times(pieces):
    """As the kernel tells of each when the last byte before it went the other way."""
    last = {True: 0, False: 0}
    for piece in pieces:
        last[piece.written] = piece.time_ns
        yield piece._replace(other_ns=last[not piece.written])


def told(ends, pieces, waits=None):
    """`waits` is a request of 5 that has no response yet."""
    connections = HttpConnections()
    connections.opened("c", ends, 0)
    if waits:
        connections.asked("c", waits, 5)
    return [seen for piece in pieces for seen in connections.moved(piece)]


@given(st.sampled_from([SERVER, CLIENT]), st.randoms(use_true_random=False))
def test_every_exchange_comes_out_once_with_its_own_time(ends, rng):
    seen = told(ends, pieces_of(ends, rng))

    assert [(s.exchange.path, s.exchange.status_code) for s in seen] == [(p, 200 + n % 4) for n, p in enumerate(PATHS)]
    assert all(s.ends == ends and s.times == 1 and 0 < s.latency_ns <= 500 for s in seen)


@given(st.sampled_from([SERVER, CLIENT]), st.randoms(use_true_random=False), st.sets(st.integers(0, 60)))
def test_lost_pieces_lose_exchanges_and_make_none(ends, rng, lost):
    seen = told(ends, [piece for number, piece in enumerate(pieces_of(ends, rng)) if number not in lost])

    assert len(seen) <= len(PATHS)
    assert all(200 <= s.exchange.status_code < 204 and s.exchange.method in ("POST", "GET") for s in seen)


@given(st.sampled_from([SERVER, CLIENT]), st.randoms(use_true_random=False), st.integers(0, 60), st.integers(1, 3))
def test_pieces_lost_in_a_row_give_no_path_the_status_of_another(ends, rng, first, count):
    """Of more than that whole messages of both sides can be lost together, of which nothing tells."""
    pieces = list(with_other_times(pieces_of(ends, rng)))
    seen = told(ends, pieces[:first] + pieces[first + count:])

    # What was lost may be a path's end, and these bodies try to be taken for requests.
    whole = {(s.exchange.method, s.exchange.path, s.exchange.status_code) for s in seen if not s.exchange.truncated}
    assert whole <= {("POST", path, 200 + number % 4) for number, path in enumerate(PATHS)}


def test_what_is_told_twice_counts_once():
    pieces = pieces_of(SERVER, random.Random(1))

    assert len(told(SERVER, [piece for piece in pieces for _ in "ab"])) == len(PATHS)


def test_what_was_not_captured_is_only_counted_past():
    body = b"x" * 100_000
    request = b"PUT /big HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"
    answer = b"HTTP/1.1 200 Fine\r\nContent-Length: 0\r\n\r\n"
    pieces = [Piece("c", 1, False, 0, request + body[:300], 0),
              # The last of the body went by at 50, and no piece of it was handed over.
              Piece("c", 70, True, 0, answer, 50),
              Piece("c", 80, False, len(request) + len(body), b"GET /next HTTP/1.1\r\n\r\n", 70),
              Piece("c", 95, True, len(answer), answer, 80)]
    seen = told(SERVER, pieces)

    assert [(s.exchange.path, s.latency_ns) for s in seen] == [("/big", 20), ("/next", 15)]


def test_a_request_that_waits_since_before_is_paired():
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 8\r\n\r\n"
    (seen,) = told(SERVER, [Piece("c", 9, True, 700, answer, 5)], waits=b"HEAD /w")

    assert (seen.exchange.method, seen.exchange.path, seen.exchange.status_code, seen.latency_ns) == (
        "HEAD", "/w", 404, 4)


CONTINUE, CREATED = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("ends", [SERVER, CLIENT])
@pytest.mark.parametrize("body", [b"", b"some of the body", b"G"])
def test_the_latency_of_an_upload_that_waits_for_100_begins_with_its_end(ends, body):
    """Nothing of the body is handed over, or its beginning; its end shows by when the last byte went that way."""
    asks, answers = ends.asks, not ends.asks
    pieces = [Piece("c", 9, answers, 0, CONTINUE, 5), *([Piece("c", 20, asks, 90, body, 9)] if body else []),
              Piece("c", 500, answers, len(CONTINUE), CREATED, 470),
              Piece("c", 600, asks, 90_000, b"GET /next HTTP/1.1\r\n\r\n", 500),
              Piece("c", 640, answers, len(CONTINUE + CREATED), CREATED, 600)]
    seen = told(ends, pieces, waits=b"PUT /up")

    assert [(s.exchange.path, s.latency_ns) for s in seen] == [("/up", 30), ("/next", 40)]


def test_a_request_behind_one_that_waits_is_not_the_end_of_it():
    pieces = [Piece("c", 10, False, 60, b"GET /b HTTP/1.1\r\n\r\n", 0),
              Piece("c", 12, True, 0, CREATED, 10), Piece("c", 17, True, len(CREATED), CREATED, 10)]
    seen = told(SERVER, pieces, waits=b"GET /a")

    assert [(s.exchange.path, s.latency_ns) for s in seen] == [("/a", 7), ("/b", 7)]


def test_what_goes_by_behind_the_answer_of_one_that_waited_is_of_another():
    # Of the request at 20 no piece was handed over, and its answer was.
    pieces = [Piece("c", 9, True, 0, CREATED, 5), Piece("c", 30, True, len(CREATED), CREATED, 20),
              Piece("c", 40, False, 99, b"GET /c HTTP/1.1\r\n\r\n", 30),
              Piece("c", 45, True, 2 * len(CREATED), CREATED, 40)]
    seen = told(SERVER, pieces, waits=b"GET /a")

    assert [(s.exchange.path, s.latency_ns) for s in seen] == [("/a", 4), ("/c", 5)]


def test_connections_are_bounded_closed_and_expire():
    connections = HttpConnections(max_connections=3)
    for name in range(5):
        connections.opened(name, SERVER, name)
    assert (len(connections), connections.forgotten) == (3, 2)
    connections.closed(4)
    connections.closed(99)
    connections.expire(3 + IDLE_NS)
    assert len(connections) == 0
    assert connections.moved(Piece(2, 9, True, 0, b"HTTP/1.1 200 \r\n", 0)) == [] and connections.strangers == 1


@pytest.mark.parametrize("ends", [SERVER, CLIENT])
def test_a_response_that_went_by_unseen_is_nobody_elses(ends):
    """It is what makes a connection be handed over: its request waits, and the next one comes."""
    connections = HttpConnections()
    connections.opened("c", ends, 5)
    connections.asked("c", b"GET /a", 5)
    pieces = [Piece("c", 10, ends.asks, 60, b"GET /b HTTP/1.1\r\n\r\n", 0),
              Piece("c", 12, not ends.asks, 900, CREATED, 10, unseen=40)]
    seen = [seen for piece in pieces for seen in connections.moved(piece)]

    assert [(s.exchange.path, s.latency_ns) for s in seen] == [("/b", 2)] and connections.untold == 1


def test_what_waits_on_a_connection_that_is_forgotten_is_counted():
    ask = Encoder()
    streams = [frame(1, 5, 2 * n + 1, ask.encode([(":method", "GET"), (":path", p)])) for n, p in enumerate(PATHS)]
    connections = HttpConnections()
    for name in ("one", "two", "answered"):
        connections.opened(name, SERVER, 5)
    connections.asked("one", b"GET /a", 5)
    connections.asked("answered", b"GET /a", 5)
    connections.moved(Piece("one", 6, False, 60, b"GET /b HTTP/1.1\r\n\r\n", 0))
    connections.moved(Piece("two", 6, False, 0, PREFACE + frame(4, 0, 0, b"") + b"".join(streams), 0))
    connections.moved(Piece("answered", 7, True, 0, CREATED, 5))
    assert connections.untold == 0
    connections.expire(7 + IDLE_NS)
    assert (len(connections), connections.untold) == (0, 2 + len(PATHS))


piece = st.builds(Piece, st.sampled_from("cd"), st.integers(0, 1000), st.booleans(), st.integers(0, 500),
                  st.binary(max_size=40) | st.sampled_from([b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 Fine\r\n",
                                                            b"Content-Length: 7\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"]),
                  st.integers(0, 1000))


@given(st.lists(piece, max_size=40), st.sampled_from([SERVER, CLIENT]))
def test_any_pieces_are_harmless(pieces, ends):
    for seen in told(ends, pieces):
        assert seen.latency_ns >= 0 and seen.exchange.path.isprintable()


def frame(what, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes((what, flags)) + stream.to_bytes(4, "big") + payload


@given(st.sampled_from([SERVER, CLIENT]), st.randoms(use_true_random=False))
def test_http2_is_known_by_its_preface(ends, rng):
    ask, answer = Encoder(), Encoder()
    requests = [frame(1, 5, 2 * n + 1, ask.encode([(":method", "GET"), (":path", p)])) for n, p in enumerate(PATHS)]
    responses = [frame(1, 5, 2 * n + 1, answer.encode([(":status", f"20{n % 4}")])) for n in range(len(PATHS))]
    requests[0] = PREFACE + frame(4, 0, 0, b"") + requests[0]
    responses[0] = frame(4, 0, 0, b"") + responses[0]
    pieces = [*cut(requests, ends.asks, 0, rng), *cut(responses, not ends.asks, 500, rng)]
    # The kernel's first piece has no less than what the preface is known by.
    pieces = [p._replace(data=requests[0][:64]) if p.offset == 0 and p.written == ends.asks else p for p in pieces]
    seen = told(ends, sorted(pieces, key=lambda piece: piece.time_ns))

    assert [(s.exchange.path, s.exchange.status_code) for s in seen] == [(p, 200 + n % 4) for n, p in enumerate(PATHS)]
    assert {s.exchange.http_version for s in seen} == {"2"}


@given(st.sampled_from([SERVER, CLIENT]), st.randoms(use_true_random=False), st.integers(0, 30), st.integers(1, 30))
def test_whatever_was_lost_what_comes_well_behind_it_is_paired_rightly(ends, rng, first, count):
    paths = [f"/{number}" for number in range(20)]
    # That a message begins is known by its first piece, if that is not too short.
    pieces = list(with_other_times(pieces_of(ends, rng, paths, smallest=16)))
    lost_until_ns = pieces[min(first + count, len(pieces) - 1)].time_ns
    seen = told(ends, pieces[:first] + pieces[first + count:])

    later = paths[lost_until_ns // 1000 + 3:]
    assert [(s.exchange.path, s.exchange.status_code) for s in seen if s.exchange.path in later] == [
        (path, 200 + int(path[1:]) % 4) for path in later]


class Sizes:
    """Of pieces, again and again: bodies end, like the beginnings of messages, in pieces of their own."""

    def __init__(self, *sizes):
        self.again = itertools.cycle(sizes)

    def randrange(self, smallest, largest):
        return next(self.again)


@pytest.mark.parametrize("ends", [SERVER, CLIENT])
@pytest.mark.parametrize("sizes", [(22, 29, 18), (16, 24), (16, 24, 17, 22, 28)])
def test_a_body_s_end_that_is_a_piece_of_its_own_costs_no_message_after_message(ends, sizes):
    paths = [f"/{number}" for number in range(20)]
    pieces = list(with_other_times(pieces_of(ends, Sizes(*sizes), paths)))
    for count in range(1, 31):
        seen = told(ends, pieces[count:])

        later = paths[pieces[count].time_ns // 1000 + 3:]
        assert [s.exchange.path for s in seen if s.exchange.path in later] == later


def test_http2_taken_up_in_its_middle_goes_on_with_the_next_frame():
    ask, answer = Encoder(), Encoder()
    request = frame(1, 5, 7, ask.encode([(":method", "GET"), (":path", "/x")]))
    connections = HttpConnections()
    connections.opened("c", SERVER, 0, is_http2=True)
    assert "c" in connections and "d" not in connections
    pieces = [Piece("c", 1, False, 900, b"the rest of a frame", 0), Piece("c", 2, False, 919, request, 0),
              Piece("c", 3, True, 5000, frame(1, 5, 7, answer.encode([(":status", "200")])), 2)]
    (seen,) = [seen for piece in pieces for seen in connections.moved(piece)]

    assert (seen.exchange.path, seen.exchange.status_code, seen.latency_ns) == ("/x", 200, 1)
