"""httpflow on a wire, inside TLS and through a proxy, beside tshark, which has the clients' keys, and nginx's log."""

import subprocess
import time
from collections import Counter
from contextlib import contextmanager

import pytest

from tests.kernel import signs, wires
from tests.kernel.captures import capturing, values
from tests.kernel.conftest import wires_and
from tests.kernel.nginx import configuration
from tests.kernel.test_httpflow import attached, flows_on, sums
from tests.kernel.test_httpflow_tls import secrets

pytestmark = pytest.mark.thorough

CLIENT, SERVER, PORT, TLS_PORT, PROXY_PORT = "10.207.0.1", "10.207.0.2", 8080, 8443, 8888
URL, TLS_URL, PROXY = f"http://{SERVER}:{PORT}", f"https://{SERVER}:{TLS_PORT}", f"http://{SERVER}:{PROXY_PORT}"
NGINX = configuration("$request_method $uri $status", r"""
    listen {port}; listen {tls_port} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {key};
    location / {{ return 200 "hello\n"; }}
    location /made {{ return 201 "made\n"; }}
    location /gone {{ return 404; }}""")
# Where it may connect to.
TINYPROXY = f"Port {PROXY_PORT}\nListen {SERVER}\nAllow 10.207.0.0/24\nConnectPort {TLS_PORT}\nMaxClients 10\n"
PATHS = ("/made", "/gone?x=1", "/", "/made", "/other")

__all__ = ["secrets"]


@pytest.fixture(scope="module", autouse=True)
def tools():
    wires_and("nginx", "curl", "tinyproxy", "tshark")
    if not signs.UPROBES:
        pytest.skip("this kernel has no uprobes")


@pytest.fixture(scope="module")
def ends():
    with wires.wire((f"{CLIENT}/24", f"{SERVER}/24")) as made:
        yield made


@contextmanager
def running(end, is_ready, *command):
    with subprocess.Popen(end.command(*command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while not is_ready():
                assert process.poll() is None and time.monotonic() < deadline, command
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def log(ends, secrets, tmp_path_factory):
    home = tmp_path_factory.mktemp("nginx")
    (home / "nginx.conf").write_text(NGINX.format(home=home, port=PORT, tls_port=TLS_PORT, certificate=secrets[0],
                                                  key=secrets[1]))
    pid = home / "pid"
    with running(ends[1], lambda: pid.exists() and pid.read_text().strip(), "nginx", "-c", home / "nginx.conf", "-e",
                 home / "error.log"):
        yield home / "access.log"


@pytest.fixture(scope="module")
def proxy(ends, tmp_path_factory):
    configured = tmp_path_factory.mktemp("proxy") / "tinyproxy.conf"
    configured.write_text(TINYPROXY)

    def listens():
        said = subprocess.run(ends[1].command("ss", "-Hltn", f"sport = :{PROXY_PORT}"), capture_output=True, text=True,
                              timeout=20)
        return bool(said.stdout.strip())

    with running(ends[1], listens, "tinyproxy", "-d", "-c", configured):
        yield PROXY


@pytest.fixture(scope="module")
def httpflow(oracle):
    yield from attached(oracle)


def curl(end, keys, *arguments):
    subprocess.run(end.command("env", f"SSLKEYLOGFILE={keys}", "curl", "-skS", *arguments), capture_output=True,
                   timeout=120, check=True)


def logged(log, number):
    """All that nginx has logged since the last time, once it is this much."""
    deadline = time.monotonic() + 60
    while len(lines := log.read_text().splitlines()) < number and time.monotonic() < deadline:
        time.sleep(0.05)
    log.write_text("")
    return Counter((method, path, int(status)) for method, path, status in map(str.split, lines))


@pytest.mark.parametrize(("version", "asked", "told"), [
    ("--http1.1", "http.request.method", "http.response.code"),
    ("--http2", "http2.headers.method", "http2.headers.status")])
def test_tshark_with_the_keys_counts_the_same_inside_tls(ends, log, httpflow, tmp_path, version, asked, told):
    capture, keys = tmp_path / "wire.pcapng", tmp_path / "keys"
    with flows_on(httpflow, ends) as flows:
        with capturing(ends[0], capture, f"tcp port {TLS_PORT}"):
            for _ in range(4):
                curl(ends[0], keys, version, *(TLS_URL + path for path in PATHS))
            expected = logged(log, 4 * len(PATHS))
        records = flows.take()

    with_keys = ("-o", f"tls.keylog_file:{keys}")
    assert Counter(values(capture, asked, asked, *with_keys)) == {"GET": expected.total()}
    statuses = Counter(str(status) for _, _, status in expected.elements())
    assert Counter(values(capture, told, told, *with_keys)) == statuses
    for direction in ("outgoing", "incoming"):
        assert sums(r for r in records if r.tags["direction"] == direction) == expected
    assert expected.total() == 4 * len(PATHS)


def test_a_tunnel_through_a_proxy_is_one_exchange_and_what_is_inside_it_another(ends, log, proxy, httpflow, tmp_path):
    capture, keys = tmp_path / "wire.pcapng", tmp_path / "keys"
    with flows_on(httpflow, ends) as flows:
        with capturing(ends[0], capture, f"tcp port {PROXY_PORT}"):
            curl(ends[0], keys, "-x", proxy, "--http1.1", f"{TLS_URL}/made?x", f"{TLS_URL}/gone")
            curl(ends[0], keys, "-x", proxy, f"{URL}/made?x")
            log_said = logged(log, 3)
        records = flows.take()

    def on(direction, tag, port):
        return sums(r for r in records if r.tags["direction"] == direction and r.tags[tag] == str(port))

    tunnel = {("CONNECT", f"{SERVER}:{TLS_PORT}", 200): 1}
    inside = {("GET", "/made", 201): 1, ("GET", "/gone", 404): 1}
    forwarded = {("GET", "/made", 201): 1}
    assert log_said == Counter(inside) + Counter(forwarded)
    # The client speaks TLS over the socket it asked the proxy on; the proxy hands on what it cannot read.
    assert on("outgoing", "dst_port", PROXY_PORT) == Counter(tunnel) + Counter(inside) + Counter(forwarded)
    assert on("incoming", "src_port", PROXY_PORT) == Counter(tunnel) + Counter(forwarded)
    assert on("incoming", "src_port", TLS_PORT) == inside
    assert on("outgoing", "dst_port", TLS_PORT) == {}
    assert on("outgoing", "dst_port", PORT) == on("incoming", "src_port", PORT) == forwarded
    as_http = ("-d", f"tcp.port=={PROXY_PORT},http", "-o", f"tls.keylog_file:{keys}")
    assert Counter(values(capture, "http.request.method", "http.request", *as_http)) == {"CONNECT": 1, "GET": 3}
