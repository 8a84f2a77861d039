"""HTTP/2 exchanges as h2, another implementation, sends them: each once, and never a path that was not asked for."""

import random
import time

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from collector.protocols.exchange import LONGEST_LINE, Exchange
from collector.protocols.http2 import MAX_STREAMS, PREFACE, Connection


class Speakers:
    """A client and a server of h2 that talk; what either says is `said`, in pieces of (side, bytes, time)."""

    def __init__(self):
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.said, self.now = [], 0
        self.client.initiate_connection()
        self.server.initiate_connection()
        self.pass_on()

    def pass_on(self):
        for side, speaker, hearer in (("c", self.client, self.server), ("s", self.server, self.client)):
            if data := speaker.data_to_send():
                self.now += 10
                self.said.append((side, data, self.now))
                hearer.receive_data(data)

    def ask(self, path="/a?b=c", method="GET", body=b"", extra=(), **how):
        stream = self.client.get_next_available_stream_id()
        headers = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "example.org"), *extra]
        self.client.send_headers(stream, headers, end_stream=not body, **how)
        if body:
            self.pass_on()
            self.client.send_data(stream, body, end_stream=True)
        self.pass_on()
        return stream

    def answer(self, stream, status=200, body=b"hello", extra=(), trailers=()):
        self.server.send_headers(stream, [(":status", str(status)), *extra], end_stream=not body and not trailers)
        if body:
            self.server.send_data(stream, body, end_stream=not trailers)
        if trailers:
            self.server.send_headers(stream, trailers, end_stream=True)
        self.pass_on()


def exchanged(said):
    connection = Connection()
    return [done for side, data, at in said for done in (
        connection.response(data, at) if side == "s" else connection.request(data, at))]


def told(said):
    return [(e.method, e.path, e.status_code) for e in exchanged(said)]


def bytewise(said):
    return [(side, data[i:i + 1], at) for side, data, at in said for i in range(len(data))]


def frame(what, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes((what, flags)) + stream.to_bytes(4, "big") + payload


def test_an_exchange_in_full():
    talk = Speakers()
    talk.answer(talk.ask())

    (done,) = exchanged(talk.said)
    assert done == Exchange("GET", "/a", False, 200, "2", 10, "example.org")


def test_many_at_a_time_answered_in_any_order_however_they_are_split():
    talk = Speakers()
    streams = [talk.ask(f"/{number}", method) for number, method in enumerate(("GET", "PUT", "DELETE", "PATCH"))]
    for stream, status in zip(reversed(streams), (404, 200, 500, 301), strict=True):
        talk.answer(stream, status)

    expected = [("PATCH", "/3", 404), ("DELETE", "/2", 200), ("PUT", "/1", 500), ("GET", "/0", 301)]
    assert told(talk.said) == expected
    assert exchanged(bytewise(talk.said)) == exchanged(talk.said)


def test_latency_is_from_the_last_of_the_request_to_the_first_of_the_response():
    talk = Speakers()
    stream = talk.ask(method="POST", body=b"x" * 100)
    asked = talk.now
    talk.now += 500
    talk.answer(stream)

    assert [e.latency_ns for e in exchanged(talk.said)] == [talk.said[-1][2] - asked]


def test_headers_that_go_on_padding_priority_and_repeated_ones():
    """Of 40 kB of headers h2 makes CONTINUATION frames, of repeated ones entries of the table."""
    talk = Speakers()
    for number in range(3):
        stream = talk.ask(f"/{number}", extra=[(f"x-{i}", str(i) * 2000) for i in range(8)])
        talk.answer(stream, extra=[("server", "x")])
    talk.answer(talk.ask("/priority", priority_weight=17, priority_depends_on=0, priority_exclusive=True))
    padded = bytes([3]) + Encoder().encode([(":method", "GET"), (":path", "/padded")]) + bytes(3)
    talk.said.append(("c", frame(1, 0x0D, 101, padded), 0))
    talk.said.append(("s", frame(1, 5, 101, Encoder().encode([(":status", "204")])), 1))

    assert told(talk.said) == [("GET", f"/{path}", 200) for path in (0, 1, 2, "priority")] + [("GET", "/padded", 204)]
    assert exchanged(bytewise(talk.said)) == exchanged(talk.said)


def test_what_is_no_final_response_is_none():
    talk = Speakers()
    stream = talk.ask()
    talk.server.send_headers(stream, [(":status", "103"), ("link", "x")])
    talk.pass_on()
    talk.answer(stream, 204, b"", trailers=[("x-after", "1")])

    assert told(talk.said) == [("GET", "/a", 204)]


def test_grpc_tells_its_status_at_the_end():
    talk = Speakers()
    grpc = [("content-type", "application/grpc")]
    stream = talk.ask("/pkg.Service/Call", "POST", b"asked", grpc)
    talk.answer(stream, 200, b"told", grpc, [("grpc-status", "5")])
    stream = talk.ask("/pkg.Service/None", "POST", b"asked", grpc)
    talk.answer(stream, 200, b"", [*grpc, ("grpc-status", "12")])
    stream = talk.ask("/pkg.Service/Reset", "POST", b"asked", grpc)
    talk.server.send_headers(stream, [(":status", "200"), *grpc])
    talk.pass_on()
    talk.client.reset_stream(stream)
    talk.pass_on()

    assert [(e.path[13:], e.status_code, e.grpc_status) for e in exchanged(talk.said)] == [
        ("Call", 200, 5), ("None", 200, 12), ("Reset", 200, None)]


def test_paths_are_those_of_http1():
    talk = Speakers()
    paths = ("/?q", "/a#b", "http://x.org/c?d", "/sp\x80", "/" + "y" * 5000)
    for path in paths:
        talk.answer(talk.ask(path.encode("latin-1")))
    stream = talk.client.get_next_available_stream_id()
    talk.client.send_headers(stream, [(":method", "CONNECT"), (":authority", "x.org:443")])
    talk.pass_on()
    talk.answer(stream)

    found = exchanged(talk.said)
    assert [e.path for e in found] == ["/", "/a", "/c", "/" + "y" * (LONGEST_LINE - 1), "x.org:443"]
    assert [e.truncated for e in found] == [False, False, False, True, False]


def test_a_connection_seen_from_the_middle_on_tells_what_it_can_and_no_more():
    """The names and paths the first requests left in the table are not known to who comes later."""
    talk = Speakers()
    for path in ("/old", "/older"):
        talk.answer(talk.ask(path))
    begin = len(talk.said)
    for path in ("/old", "/new", "/new", "/older"):
        talk.answer(talk.ask(path))
    connection = Connection()
    found = [e for side, data, at in talk.said[begin:] for e in (
        connection.response(data, at) if side == "s" else connection.request(data, at))]

    assert [e.path for e in found] == ["/new", "/new"] and connection.untold == 2
    assert {e.method for e in found} == {"GET"}


def test_missing_bytes_of_bodies_do_no_harm_and_those_of_headers_are_never_guessed():
    talk = Speakers()
    connection = Connection()
    found = []
    for number in range(6):
        stream = talk.ask(f"/{number % 3}", extra=[("x-long", "y" * 500)] if number == 2 else [])
        talk.answer(stream, 200 + number, b"z" * 10_000)
    for side, data, at in talk.said:
        if side == "s":
            found += connection.response(data[:60], at, max(0, len(data) - 60))
        else:
            found += connection.request(data[:300], at, max(0, len(data) - 300))

    assert {(e.path, e.status_code) for e in found} <= {(f"/{n % 3}", 200 + n) for n in range(6)}
    assert ("/0", 200) in {(e.path, e.status_code) for e in found} and connection.untold


def test_the_table_may_be_made_larger_and_smaller():
    talk = Speakers()
    for size in (0, 65536, 100, 4096):
        talk.server.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
        talk.pass_on()
        talk.pass_on()
        for number in (1, 2, 1):
            talk.answer(talk.ask(f"/{size}/{number}", extra=[("x-id", "z" * 90)]))

    assert [e.path for e in exchanged(talk.said)] == [f"/{s}/{n}" for s in (0, 65536, 100, 4096) for n in (1, 2, 1)]


def test_streams_that_are_never_answered_are_forgotten():
    connection, encoder = Connection(), Encoder()
    connection.request(PREFACE, 0)
    for number in range(1, 10 * MAX_STREAMS, 2):
        connection.request(frame(1, 5, number, encoder.encode([(":method", "GET"), (":path", "/")])), 0)

    answers = Encoder()
    for number in range(1, 10 * MAX_STREAMS, 2):
        connection.response(frame(4, 0, 0, b"") * (number == 1)
                            + frame(1, 5, number, answers.encode([(":status", "200")])), 0)

    assert not connection._streams and connection.untold == 4 * MAX_STREAMS


def test_what_makes_no_sense_is_only_waited_out():
    connection, ask, answer = Connection(), Encoder(), Encoder()
    connection.request(PREFACE, 0)
    for _ in range(1000):
        # A ping has 8 bytes.
        connection.request(frame(6, 0, 0, b"abc"), 0)
        connection.response(frame(6, 0, 0, b"abc"), 0)
    connection.request(frame(1, 5, 1, ask.encode([(":method", "GET"), (":path", "/")])), 1)
    (done,) = connection.response(frame(1, 5, 1, answer.encode([(":status", "200")])), 2)

    assert (done.path, done.status_code) == ("/", 200)


@pytest.mark.parametrize("call", [8192, 16384, 65536])
def test_large_responses_of_which_each_call_is_captured_in_part_cost_themselves_alone(call):
    """nginx fills TLS records of 16 KiB with frames of 8: where the captured part ends is anywhere in a frame."""
    captured, body = 4096, b"x" * 8192
    connection, ask, answer = Connection(), Encoder(), Encoder()
    connection.request(PREFACE, 0)
    connection.response(frame(4, 0, 0, b""), 0)
    found = []
    for number in range(1, 100, 2):
        connection.request(frame(1, 5, number, ask.encode([(":method", "GET"), (":path", f"/{number}")])), number)
        said = frame(1, 4, number, answer.encode([(":status", "200")]))
        said += b"".join(frame(0, end == 19, number, body) for end in range(20))
        for at in range(0, len(said), call):
            whole = said[at:at + call]
            for begin in range(0, min(captured, len(whole)), 256):
                found += connection.response(whole[begin:min(begin + 256, captured)], number)
            if len(whole) > captured:
                connection.response(b"", number, len(whole) - captured)

    # hpack's table may be lost with the frames' places: what it said is then not told, and never another path.
    assert len(found) + connection.untold == 50 and len(found) >= 25
    assert [e.path for e in found] == sorted({e.path for e in found}, key=lambda path: int(path[1:]))


def test_a_request_whose_headers_were_not_captured_is_counted():
    connection, ask, answer = Connection(), Encoder(), Encoder()
    connection.request(PREFACE + frame(1, 5, 1, ask.encode([(":method", "GET"), (":path", "/seen")])), 0)
    connection.request(frame(0, 1, 7, b"x" * 6000)[:4096], 1, missing=2000)
    answers = b"".join(frame(1, 5, n, answer.encode([(":status", "200")])) for n in (1, 3))
    found = connection.response(frame(4, 0, 0, b"") + answers, 2)

    assert [e.path for e in found] == ["/seen"] and connection.untold == 1


PIECES = st.tuples(st.sampled_from("cs"), st.one_of(
    st.binary(max_size=80), st.just(PREFACE),
    st.builds(frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=60)),
    st.builds(lambda pairs, stream: frame(1, 5, stream, Encoder().encode(pairs)), st.lists(st.tuples(
        st.sampled_from([":method", ":path", ":status", "x", "content-type"]),
        st.sampled_from(["GET", "/", "200", "99", "application/grpc"]))), st.integers(1, 9)),
), st.integers(0, 1000), st.integers(0, 50))


@given(st.lists(PIECES, max_size=40))
def test_nothing_raises_and_nothing_grows(pieces):
    connection = Connection()
    for side, data, at, missing in pieces:
        feed = connection.response if side == "s" else connection.request
        for done in feed(data, at, missing):
            assert done.path and 200 <= done.status_code <= 599 and done.latency_ns >= 0
    assert len(connection._streams) <= MAX_STREAMS


def a_talk():
    talk = Speakers()
    for number in range(6):
        talk.answer(talk.ask(f"/{number}", "POST" if number % 2 else "GET", b"body" * number), 200 + number)
    return talk.said


SAID = a_talk()


@given(st.randoms(use_true_random=False))
def test_any_split_tells_the_same(rng):
    pieces = []
    for side, data, at in SAID:
        cuts = sorted(rng.sample(range(len(data) + 1), min(3, len(data))))
        pieces += [(side, data[a:b], at) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    assert exchanged(pieces) == exchanged(SAID)


@given(st.integers(0, len(SAID) - 1), st.integers(0, 200), st.integers(0, 200))
def test_a_gap_anywhere_never_makes_an_exchange_that_was_not(number, begin, length):
    connection, found = Connection(), []
    for at_piece, (side, data, at) in enumerate(SAID):
        feed = connection.response if side == "s" else connection.request
        if at_piece == number:
            gap = data[begin:begin + length]
            found += feed(data[:begin], at, len(gap))
            data = data[begin + length:]
        found += feed(data, at)

    assert {e[:5] for e in found} <= {e[:5] for e in exchanged(SAID)}


@pytest.mark.parametrize("piece", [
    frame(1, 4, 1, b"\x82" * 20_000), frame(1, 4, 1, b"\x40\x00\x00" * 5000), frame(9, 0, 1), frame(0, 0, 1),
    frame(1, 0, 1, b"\x7f" + b"\xff" * 60_000), random.Random(1).randbytes(60_000)])
def test_time_is_linear(piece):
    def processor_s(times):
        connection, begun = Connection(), time.thread_time()
        connection.request(PREFACE, 0)
        for _ in range(times):
            connection.request(piece, 0)
        return time.thread_time() - begun

    times = 4 if len(piece) > 100 else 4000
    short, long = processor_s(times), processor_s(10 * times)
    assert long < 40 * short + 0.5
