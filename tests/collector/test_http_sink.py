"""The HTTP sink against real servers on 127.0.0.1 that take, refuse, fail, stall and hang up."""

import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from line_protocol_parser import parse_line

from collector.record import Record
from collector.sinks import open_sink
from collector.sinks.http import HttpSink
from collector.sinks.queued import Queued


def points(count):
    return [Record("netflow", {"host": "box"}, {"n": number}, number) for number in range(count)]


class Server(ThreadingHTTPServer):
    """Answers with `answers` in turn (a status, "hang up" or "stall"), then 200; keeps what it accepted."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests, self.accepted = [], [], []
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1/write/network?input=ebpf-net&token=tkn_secret"

    def handle_error(self, request, client_address):
        """A client that gave up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
        lines = [parse_line(line)["fields"]["n"] for line in body.decode().split("\n")]
        self.server.requests.append((self.path, dict(self.headers), lines))
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if answer == "stall":
            self.server.released.wait(10)
            answer = 200
        if answer == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if answer < 300:
            self.server.accepted += lines
        self.send_response(answer)
        text = b"" if answer == 204 else b'{"error_code": "datakit.badPoint",\n "message": "no such thing"}'
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def sink(url, **options):
    give_up = threading.Event()
    quick = {"backoff_s": 0.01, "longest_backoff_s": 0.02, "timeout_s": 5.0, **options}
    return Queued(HttpSink(url, give_up, **quick), give_up)


def test_points_arrive_in_order_in_gzipped_batches_of_512(server):
    queued = open_sink(server.url)
    queued.write(points(1025))
    queued.close()

    assert [len(lines) for _, _, lines in server.requests] == [512, 512, 1]
    assert server.accepted == list(range(1025))
    path, headers, _ = server.requests[0]
    assert path == "/v1/write/network?input=ebpf-net&token=tkn_secret"
    assert headers["Content-Encoding"] == "gzip"
    assert (queued.written, queued.dropped) == (1025, 0)


def test_the_token_is_not_in_the_name(server):
    queued = sink(server.url.replace("//", "//user:password@"))
    queued.close()

    assert queued.name == f"http://127.0.0.1:{server.server_port}/v1/write/network"


@pytest.mark.parametrize("answer", [500, 503, "hang up"])
def test_a_server_error_is_tried_again(server, answer, caplog):
    server.answers = [answer, answer]
    queued = sink(server.url)
    queued.write(points(600))
    queued.close()

    assert len(server.requests) == 4
    assert server.accepted == list(range(600))
    assert (queued.written, queued.dropped) == (600, 0)
    assert len([record for record in caplog.records if "will be tried again" in record.message]) == 1


def test_it_is_not_tried_for_ever(server):
    server.answers = [500] * 3
    queued = sink(server.url, tries=3)
    queued.write(points(600))
    queued.close()

    assert [len(lines) for _, _, lines in server.requests] == [512, 512, 512, 88]
    assert (queued.written, queued.dropped) == (88, 512)


def test_a_refusal_is_dropped_and_the_servers_answer_is_logged_once(server, caplog):
    caplog.set_level("INFO")
    server.answers = [400, 400]
    queued = sink(server.url)
    queued.write(points(1536))
    queued.close()

    assert server.accepted == list(range(1024, 1536))
    assert (queued.written, queued.dropped) == (512, 1024)
    (told,) = [record.message for record in caplog.records if "400 Bad Request" in record.message]
    assert told.endswith('400 Bad Request: {"error_code": "datakit.badPoint", "message": "no such thing"} '
                         '(the points are dropped)')
    assert "secret" not in caplog.text


def test_204_is_success(server):
    server.answers = [204]
    queued = sink(server.url)
    queued.write(points(1))
    queued.close()

    assert queued.written == 1


def test_a_stalled_server_does_not_block_writes_and_the_timeout_leads_to_a_retry(server):
    server.answers = ["stall"]
    queued = sink(server.url, timeout_s=1.0)
    start = time.monotonic()
    for _ in range(10):
        queued.write(points(10))
    assert time.monotonic() - start < 0.5
    queued.close()

    assert queued.written == 100
    assert len(server.requests) == 11


def test_the_queue_is_bounded_while_the_server_stalls(server):
    server.answers = ["stall"]
    give_up = threading.Event()
    queued = Queued(HttpSink(server.url, give_up), give_up, capacity=30)
    queued.write(points(1))
    while not server.requests:
        time.sleep(0.01)
    for _ in range(10):
        queued.write(points(10))
    assert queued.dropped == 70

    server.released.set()
    queued.close()
    assert (queued.written, queued.dropped) == (31, 70)


def test_close_keeps_its_deadline_with_nobody_listening():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        queued = sink(f"http://127.0.0.1:{unused.getsockname()[1]}/", backoff_s=30, longest_backoff_s=30)
        queued.write(points(700))
        start = time.monotonic()
        queued.close(0.3)

    assert time.monotonic() - start < 2
    assert (queued.written, queued.dropped) == (0, 700)


def test_a_server_that_comes_back_gets_what_waited(server):
    server.answers = [503] * 4
    queued = sink(server.url)
    queued.write(points(3))
    queued.write(points(2))
    queued.flush(10)

    assert server.accepted == [0, 1, 2, 0, 1]
    queued.close()
