"""httpflow beside real servers and real clients: what nginx's log says, and tshark on the wire."""

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.kernel import signs, wires
from tests.kernel.captures import capturing, values
from tests.kernel.conftest import wires_and
from tests.kernel.nginx import nginx
from tests.kernel.test_httpflow import attached, flows_on, sums

pytestmark = pytest.mark.thorough

CLIENT, SERVER, PORT, UPSTREAM_PORT = "10.206.0.1", "10.206.0.2", 8080, 8099
URL = f"http://{SERVER}:{PORT}"
SLOW_S = 0.05
REQUESTS = 10_000


@pytest.fixture(scope="module", autouse=True)
def tools():
    wires_and("nginx", "curl", "wrk", "tshark")


@pytest.fixture(scope="module")
def ends():
    with wires.wire((f"{CLIENT}/24", f"{SERVER}/24"), ("fd00:206::1/64", "fd00:206::2/64")) as made:
        yield made


class Slow(BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(SLOW_S)
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"slow\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def server(ends, tmp_path):
    slow = ends[1].run(lambda: ThreadingHTTPServer(("127.0.0.1", UPSTREAM_PORT), Slow))
    thread = threading.Thread(target=slow.serve_forever)
    thread.start()
    try:
        with nginx(ends[1], tmp_path, PORT, UPSTREAM_PORT) as running:
            yield running
    finally:
        slow.shutdown()
        thread.join()
        slow.server_close()


@pytest.fixture(scope="module")
def httpflow(oracle):
    yield from attached(oracle)


def run(end, *command):
    subprocess.run(end.command(*command), capture_output=True, timeout=120, check=True)


def both_sides(records):
    """Exchanges by (method, path, status) of the client's side and of the server's."""
    return [sums(r for r in records if r.tags["direction"] == direction and r.tags["dst_ip"] in (CLIENT, SERVER))
            for direction in ("outgoing", "incoming")]


# Not HEAD, to which wrk would wait for a body.
SCRIPT = """
local paths = {"/", "/made", "/gone", "/moved", "/empty", "/made?q=1", "/files/none"}
local methods = {"GET", "PATCH", "DELETE", "OPTIONS"}
local n = 0
request = function()
  n = n + 1
  return wrk.format(methods[n % #methods + 1], paths[n % #paths + 1])
end
"""
CONNECTIONS = 8


def test_ten_thousand_requests_at_full_speed_are_counted_once_on_either_side(ends, server, httpflow, tmp_path):
    (tmp_path / "wrk.lua").write_text(SCRIPT)
    runs = 0
    with flows_on(httpflow, ends) as flows:
        while len(server.requests(0)) < REQUESTS and runs < 30:
            run(ends[0], "wrk", "-t1", f"-c{CONNECTIONS}", "-d1s", "-s", tmp_path / "wrk.lua", URL)
            runs += 1
        records = flows.take()

    logged = server.counts(REQUESTS)
    client, seen = both_sides(records)
    assert sum(logged.values()) >= REQUESTS
    # wrk leaves in the middle of things, once a connection: it reads no response, or nginx cannot write it.
    for side in (client, seen):
        assert not side - logged and sum((logged - side).values()) <= runs * CONNECTIONS


CURLS = {
    "http 1.0": (("--http1.0", f"{URL}/made"), {("GET", "/made", 201): 1}),
    "head": (("-I", f"{URL}/files/big?x#y"), {("HEAD", "/files/big", 200): 1}),
    "a body": (("-d", "x" * 3000, f"{URL}/made"), {("POST", "/made", 201): 1}),
    "a chunked body": (("-H", "Transfer-Encoding: chunked", "-d", "GET / HTTP/1.1\r\n\r\n" * 100, f"{URL}/made"),
                       {("POST", "/made", 201): 1}),
    "a body that waits to be asked for": (("-H", "Expect: 100-continue", "-T", __file__, f"{URL}/made"),
                                          {("PUT", "/made", 201): 1}),
    "four over one connection": ((f"{URL}/", f"{URL}/gone", f"{URL}/empty", f"{URL}/moved"),
                                 {("GET", "/", 200): 1, ("GET", "/gone", 404): 1, ("GET", "/empty", 204): 1,
                                  ("GET", "/moved", 301): 1}),
    "a file that looks like requests": ((f"{URL}/files/big", f"{URL}/"),
                                        {("GET", "/files/big", 200): 1, ("GET", "/", 200): 1}),
    "a head of many headers": ((*(word for n in range(60) for word in ("-H", f"X-{n}: {'y' * 40}")), f"{URL}/"),
                               {("GET", "/", 200): 1}),
    "a path of 1000 bytes": ((f"{URL}/{'p' * 1000}",), {("GET", "/" + "p" * 1000, 200): 1}),
    "IPv6": ((f"http://[fd00:206::2]:{PORT}/made",), {("GET", "/made", 201): 1}),
}


@pytest.mark.parametrize("what", CURLS)
def test_what_curl_does_is_counted_on_either_side(ends, server, httpflow, what):
    arguments, expected = CURLS[what]
    if what == "IPv6" and not signs.IPV6:
        pytest.skip("no IPv6")
    with flows_on(httpflow, ends) as flows:
        run(ends[0], "curl", "-sS", *arguments)
        assert server.counts(len(expected)) == expected
        records = flows.take()

    versions = {r.fields["http_version"] for r in records}
    for direction in ("outgoing", "incoming"):
        assert sums(r for r in records if r.tags["direction"] == direction) == expected
    assert versions == {"1.1"}  # nginx's, whatever is asked with


CLIENT_OF_HTTPX = """
import httpx, sys
with httpx.Client(base_url=sys.argv[1]) as client:
    for method, path in (("GET", "/"), ("HEAD", "/"), ("POST", "/made"), ("PUT", "/gone"), ("OPTIONS", "/moved"),
                         ("PATCH", "/"), ("DELETE", "/empty")) * 20:
        client.request(method, path, content=b"z" * 100 if method in ("POST", "PUT", "PATCH") else None)
    client.post("/made", content=iter([b"a" * 10, b"b" * 5000]))
"""


def test_what_httpx_does_is_counted_on_either_side(ends, server, httpflow):
    with flows_on(httpflow, ends) as flows:
        run(ends[0], sys.executable, "-c", CLIENT_OF_HTTPX, URL)
        logged = server.counts(141)
        records = flows.take()

    assert sum(logged.values()) == 141
    assert both_sides(records) == [logged, logged]
    # Whose name is asked for is an address here, and that is none.
    assert not [r for r in records if "dst_domain" in r.tags]


def test_what_an_upstream_waits_is_the_latency_of_both_servers(ends, server, httpflow):
    begun = time.monotonic()
    with flows_on(httpflow, ends) as flows:
        run(ends[0], "curl", "-sS", f"{URL}/slow")
        took_s = time.monotonic() - begun
        server.requests(1)
        records = [r for r in flows.take() if r.fields["path"] == "/slow"]

    by_end = {(r.tags["src_port"], r.tags["dst_port"]): r.fields["latency"] / 1e9 for r in records}
    for port in (PORT, UPSTREAM_PORT):
        assert SLOW_S <= by_end[str(port), "*"] <= took_s and 0 < by_end["*", str(port)] <= took_s


def test_tshark_on_the_same_wire_counts_the_same(ends, server, httpflow, tmp_path):
    capture = tmp_path / "wire.pcapng"
    with flows_on(httpflow, ends) as flows:
        with capturing(ends[0], capture, f"tcp port {PORT}"):
            run(ends[0], sys.executable, "-c", CLIENT_OF_HTTPX, URL)
            run(ends[0], "curl", "-sS", *(f"{URL}/{n % 7}" for n in range(100)))
            logged = server.counts(241)
        records = flows.take()

    for what in ("http.request", "http.response"):
        assert len(values(capture, "frame.number", what, "-d", f"tcp.port=={PORT},http")) == 241
    assert both_sides(records) == [logged, logged]
