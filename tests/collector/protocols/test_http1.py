"""HTTP/1 exchanges: each once, with the right status and time, however they are split, and no harm from any bytes."""

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.protocols.exchange import LONGEST_LINE, METHODS, Exchange, path_of
from collector.protocols.http1 import MAX_PIPELINED, Connection

GET = b"GET /a?b=c HTTP/1.1\r\nHost: example.org\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def exchanged(*pieces):
    """(side, bytes, time) each: what comes out."""
    connection = Connection()
    return [done for side, data, at in pieces for done in (
        connection.response(data, at) if side == "s" else connection.request(data, at) or ())]


def test_an_exchange_in_full():
    assert exchanged(("c", GET, 100), ("s", OK, 350)) == [
        Exchange("GET", "/a", False, 200, "1.1", 250, "example.org")]


def test_latency_is_from_the_last_of_the_request_to_the_first_of_the_response():
    post = b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n"
    (done,) = exchanged(("c", post, 1), ("c", b"12345", 2), ("c", b"12345", 10), ("s", OK[:3], 15), ("s", OK[3:], 99))

    assert done.latency_ns == 5


def test_keep_alive_pipelining_and_bodies_that_look_like_messages():
    trap = b"POST /trap HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(GET), GET)
    found = exchanged(("c", GET + trap + GET, 0), ("s", OK + b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 1),
                      ("s", OK, 2), ("c", GET, 3), ("s", OK, 4))

    assert [(e.method, e.path, e.status_code) for e in found] == [
        ("GET", "/a", 200), ("POST", "/trap", 404), ("GET", "/a", 200), ("GET", "/a", 200)]


@pytest.mark.parametrize("asked, answered", [
    (b"HEAD / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
    (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
    (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
    (GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
          b"5;x=y\r\nhello\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\n"),
    (GET, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK),
    (b"GET / HTTP/1.0\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.0 200 OK\nContent-Length: 3\n\nabc"),
    (b"PUT / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", OK),
    (b"OPTIONS * HTTP/1.1\r\n\r\n\r\n\r\n", OK),
])
def test_the_next_message_is_found_after_any_body(asked, answered):
    """Also byte by byte."""
    whole = [("c", asked, 0), ("s", answered, 1), ("c", GET, 2), ("s", OK, 3)]
    bytewise = [(side, data[i:i + 1], at) for side, data, at in whole for i in range(len(data))]

    assert [e.status_code for e in exchanged(*whole)][-1] == 200 and len(exchanged(*whole)) == 2
    assert exchanged(*bytewise) == exchanged(*whole)


def test_what_ends_http_ends_it():
    tunnel = b"CONNECT example.org:443 HTTP/1.1\r\n\r\n"
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    until_close = b"HTTP/1.0 200 OK\r\n\r\nall that comes"
    for asked, answered, path, status in ((tunnel, b"HTTP/1.1 200 OK\r\n\r\n", "example.org:443", 200),
                                          (GET, upgrade, "/a", 101), (GET, until_close, "/a", 200)):
        connection = Connection()
        connection.request(asked, 0)
        (done,) = connection.response(answered, 1)
        assert (done.path, done.status_code) == (path, status) and connection.is_over
        connection.request(GET, 2)
        assert connection.response(OK, 3) == []


def test_a_connection_seen_from_the_middle_on_pairs_what_is_whole():
    assert exchanged(("s", OK, 0), ("c", GET, 1), ("s", OK, 2))[0].latency_ns == 1


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03\x01\x02", b"GETX / HTTP/1.1\r\n", b"GET /\r\n",
                                  b"GET / HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"\0"])
def test_what_is_not_http_is_over_at_once(data):
    connection = Connection()
    connection.request(data, 0)

    assert connection.is_over


def test_a_capture_that_is_cut_costs_the_body_alone():
    """As of a buffer of which the first bytes are captured: the next begins with the next message."""
    connection = Connection()
    connection.request(GET[:30], 0, missing=len(GET) - 30)
    (first,) = connection.response(b"HTTP/1.1 200 OK\r\nContent-Le", 5, missing=5000)
    connection.response(b"the body goes on", 6)
    connection.request(GET, 10)
    (second,) = connection.response(b"HTTP/1.1 500 No\r\nContent-Length: 9000\r\n\r\nabc", 14, missing=8997)
    connection.request(b"GET /" + b"x" * 50, 20, missing=9000)
    (third,) = connection.response(OK, 21)

    assert [(e.status_code, e.latency_ns, e.truncated) for e in (first, second, third)] == [
        (200, 5, False), (500, 4, False), (200, 1, True)]
    assert third.path == "/" + "x" * 50


@pytest.mark.parametrize("other", [
    b"PROPFIND /dav HTTP/1.1\r\nContent-Length: 7\r\n\r\nGET / H", b"LIST /v1/secret HTTP/1.1\r\n\r\n",
    b"M-SEARCH * HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("pipelined", [False, True])
def test_a_request_of_another_method_takes_its_own_response(other, pipelined):
    asked = [GET, other, GET.replace(b"/a", b"/b")]
    answers = [b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status for status in (200, 207, 404)]
    talk = [*(("c", data, 0) for data in asked), *(("s", data, 1) for data in answers)]
    if not pipelined:
        talk = [one for pair in zip(talk[:3], talk[3:], strict=True) for one in pair]
    whole = exchanged(*talk)

    assert [(e.path, e.status_code) for e in whole] == [("/a", 200), ("/b", 404)]
    assert exchanged(*((side, data[i:i + 1], at) for side, data, at in talk for i in range(len(data)))) == whole


def test_one_lost_response_costs_itself_alone():
    connection, found = Connection(), []
    for number in range(5):
        connection.request(b"GET /%d HTTP/1.1\r\n\r\n" % number, 10 * number)
        answer = b"HTTP/1.1 20%d X\r\nContent-Length: 0\r\n\r\n" % number
        is_lost = number == 1
        found += connection.response(b"" if is_lost else answer, 10 * number + 1, len(answer) if is_lost else 0)

    assert [(e.path, e.status_code, e.latency_ns) for e in found] == [
        (f"/{n}", 200 + n, 1) for n in (0, 2, 3, 4)]
    assert connection.untold == 1


@pytest.mark.parametrize("end", [b"GET /", b"GET", b"T", b"X", b"POST /a HTTP/1.1"])
@pytest.mark.parametrize("seen", [False, True])
def test_a_body_that_ends_like_a_message_begins_does_not_cost_the_next_message(end, seen):
    """Its head was lost, so that only the next beginning is waited for; requests `seen` before make more likely."""
    connection = Connection(is_sure=True)
    connection.request(GET if seen else b"", 0, 0 if seen else 40)
    connection.request(end, 1)
    connection.response(OK, 2)
    connection.request(GET, 3)
    (found,) = connection.response(b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\nHTTP/1.1 ", 4)

    assert (found.path, found.status_code, found.latency_ns) == ("/a", 404, 1)


@pytest.mark.parametrize("begun", [b"T", b"GET /lost", b"GET /lost HTTP/1.1\r\nHost: a\r\n"])
def test_a_head_of_which_the_rest_was_lost_does_not_cost_the_next_message(begun):
    connection = Connection(is_sure=True)
    connection.request(GET, 0)
    connection.response(OK, 1)
    connection.request(begun, 2)
    connection.response(OK, 3)
    connection.request(GET, 4)
    (found,) = connection.response(OK, 5)

    assert (found.path, found.latency_ns) == ("/a", 1)


def test_a_path_that_never_ends_is_cut_and_told():
    connection = Connection()
    connection.request(b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", 0)
    (done,) = connection.response(OK, 1)

    assert done.truncated and done.path == "/" + "x" * (LONGEST_LINE - len("GET /"))


def test_more_requests_than_anybody_sends_are_not_kept():
    connection = Connection()
    connection.request(GET * (MAX_PIPELINED + 1), 0)

    assert connection.is_over


@pytest.mark.parametrize("target, path", [
    (b"/", "/"), (b"/a/b?c", "/a/b"), (b"/a#b?c", "/a"), (b"http://example.org/x?y", "/x"),
    (b"http://example.org", "/"), (b"http://example.org?q", "/"), (b"*", "*"), (b"?q", "/"),
    (b"/caf\xc3\xa9", ""), (b"/\x1b[2J", "")])
def test_paths(target, path):
    assert path_of(target)[0] == path


def chunked(body, rng):
    cuts = sorted({0, len(body), *(rng.randrange(len(body) + 1) for _ in range(3))})
    parts = [body[a:b] for a, b in pairwise(cuts)]
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"


@st.composite
def conversations(draw):
    """Requests and responses as bytes, and the (method, status) they should come out as."""
    requests, responses, expected = [], [], []
    rng = draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.integers(1, 6))):
        method = draw(st.sampled_from(sorted(METHODS - {b"CONNECT"})))
        status = draw(st.sampled_from([200, 201, 204, 301, 304, 404, 500]))
        for messages, first, may_have_body in ((requests, b"%s /x HTTP/1.1" % method, True),
                                               (responses, b"HTTP/1.1 %d X" % status,
                                                method != b"HEAD" and status not in (204, 304))):
            body = draw(st.binary(max_size=60)) if may_have_body else b""
            if may_have_body and draw(st.booleans()):
                messages.append(first + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, rng))
            else:
                messages.append(first + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        expected.append((method.decode(), status))
    return b"".join(requests), b"".join(responses), expected


@given(conversations(), st.randoms(use_true_random=False))
def test_every_exchange_comes_out_once_however_it_is_split(conversation, rng):
    requests, responses, expected = conversation
    connection, found = Connection(), []
    for data, feed in ((requests, connection.request), (responses, connection.response)):
        at = 0
        while at < len(data):
            size = rng.randrange(1, 40)
            found += feed(data[at:at + size], at) or ()
            at += size

    assert [(e.method, e.status_code) for e in found] == expected


seeds = st.sampled_from([GET, OK, OK[:20], b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n", b"fffffffffffffff\r\n",
                         b"Content-Length: 99999999999999999999\r\n\r\n", b"HTTP/1.1 200", b"HTTP/1.1 999 X\r\n"])


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=80) | seeds, st.integers(0, 3)), max_size=30))
def test_any_pieces_are_harmless(pieces):
    connection = Connection()
    for now, (is_server, data, missing) in enumerate(pieces):
        found = (connection.response if is_server else connection.request)(data, now, missing) or ()
        assert all(e.latency_ns >= 0 and 100 <= e.status_code <= 599 and e.path.isprintable() for e in found)
    assert len(connection._asked) <= MAX_PIPELINED
    assert max(len(connection._client.held), len(connection._server.held)) <= LONGEST_LINE


def test_time_grows_with_the_bytes_and_no_faster():
    rng = random.Random(1)
    for piece in (b"\r\n" * 500, b"x" * 1000, b"A: " + b"y" * 997, rng.randbytes(1000), b"1\r\nz\r\n" * 200):
        connection = Connection()
        head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
        connection.request(head + (b"\r\n" if piece.startswith(b"1\r\n") else b""), 0)
        begun = time.process_time()
        for _ in range(500):
            connection.request(piece, 1)
        assert time.process_time() - begun < 2
