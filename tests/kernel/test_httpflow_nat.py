"""httpflow beside real nftables rules: where requests to a translated address really went."""

import subprocess
import sys
import time
from contextlib import closing

import pytest

from collector.config import Options
from collector.dataset import Setup
from collector.datasets.httpflow_running import HttpflowRunning
from collector.nf_conn import NfConn
from tests.kernel import signs, wires
from tests.kernel.conftest import version_code, wires_and

pytestmark = pytest.mark.thorough

CLIENT, SERVER, VIRTUAL = "10.208.0.1", "10.208.0.2", "10.208.0.80"
RULES = f"""
table ip kcompat {{
  chain out {{
    type nat hook output priority -100
    ip daddr {VIRTUAL} tcp dport 80 dnat to {SERVER}:8080
  }}
  # Before 4.18 replies are translated back only where there are chains on their way.
  chain back {{
    type nat hook prerouting priority -100
  }}
  chain post {{
    type nat hook postrouting priority 100
  }}
}}
"""
SERVE = f"""
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("{SERVER}", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
"""
PATIENCE_S = 60
GET = f"""
import sys, urllib.request
direct = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
print(direct.open(sys.argv[1], timeout={PATIENCE_S}).read().decode(), end="")
"""


@pytest.fixture
def ends():
    wires_and("nft", "ip")
    with wires.wire((f"{CLIENT}/24", f"{SERVER}/24")) as made:
        done = subprocess.run(made[0].command("nft", "-f", "-"), input=RULES, capture_output=True, text=True,
                              timeout=PATIENCE_S, check=False)
        if done.returncode:
            pytest.skip(f"no translation here: {done.stderr.splitlines()[0]}")
        yield made


@pytest.fixture
def server(ends):
    with subprocess.Popen(ends[1].command(sys.executable, "-c", SERVE), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.terminate()


def get(end, url):
    done = subprocess.run(end.command(sys.executable, "-c", GET, url), capture_output=True, text=True,
                          timeout=2 * PATIENCE_S, check=True)
    assert done.stdout == "ok"


def test_the_target_of_a_translated_request_is_the_servers(oracle, ends, server):
    setup = Setup(Options("box", datasets=("httpflow",)), oracle, version_code())
    with closing(HttpflowRunning(setup)) as running:
        get(ends[0], f"http://{VIRTUAL}/translated")
        get(ends[0], f"http://{SERVER}:8080/direct")
        records, deadline = [], time.monotonic() + PATIENCE_S
        while len(records) < 4 and time.monotonic() < deadline:
            records += [r for r in running.flush(time.time_ns()) if r.tags["src_ip"] in (CLIENT, SERVER)]
        status = setup.translations.status()
        assert status.connections >= 1
        assert status.how == (NfConn.how if signs.KPROBES else "ctnetlink")
    assert setup.translations.status() is None
    ways = {(r.fields["path"], r.tags["direction"]): tuple(r.tags[tag] for tag in (
        "dst_ip", "dst_port", "dst_nat_ip", "dst_nat_port")) for r in records}
    assert ways == {
        ("/translated", "outgoing"): (VIRTUAL, "80", SERVER, "8080"),
        ("/translated", "incoming"): (CLIENT, "*", "N/A", "N/A"),
        ("/direct", "outgoing"): (SERVER, "8080", "N/A", "N/A"),
        ("/direct", "incoming"): (CLIENT, "*", "N/A", "N/A")}
