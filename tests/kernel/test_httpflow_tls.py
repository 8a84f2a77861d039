"""httpflow inside TLS: Python on both sides everywhere; nginx, curl, wget, gnutls-cli and httpx where they are."""

import mmap
import os
import shutil
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from collector import tls_hooks, tls_libraries
from collector.config import Options
from collector.datasets.httpflow import Httpflow
from collector.mapped_files import edition, pattern
from tests.kcompat.elf_builder import elf, library, with_section
from tests.kernel import signs
from tests.kernel.conftest import cannot, version_code
from tests.kernel.nginx import configuration

# Not in guests: see test_httpflow.py.
pytestmark = pytest.mark.thorough
REQUESTS = 40
CLIENT = """
import http.client, ssl, sys
connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), context=ssl._create_unverified_context())
print("ready", flush=True)
for line in sys.stdin:
    connection.request("GET", line.strip())
    print(connection.getresponse().status, flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def uprobes():
    if not signs.UPROBES:
        pytest.skip("this kernel has no uprobes")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """(certificate, key), for nobody but these tests."""
    home, key = tmp_path_factory.mktemp("secrets"), ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kcompat.test")]), datetime.now(UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
            .sign(key, hashes.SHA256()))
    (home / "certificate").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (home / "key").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return home / "certificate", home / "key"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.send_response(int(self.path[1:4]) if self.path[1:4].isdigit() else 200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def port(secrets):
    with serving(secrets) as port:
        yield port


@contextmanager
def serving(secrets):
    """A server of Python's in this process."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*secrets)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class Watching:
    """What is seen inside TLS, by anybody."""

    def __init__(self, oracle):
        self._seen, self._lock = [], threading.Lock()
        self.dataset = Httpflow(oracle, Options("box", loopback=True), version_code(), self._saw)

    def _saw(self, seen):
        with self._lock:
            self._seen.append(seen)

    def take(self, port):
        """(what the clients of that port did, what its servers did)

        A server may not have left the call yet of which its client has the answer already.
        """
        seen, give_up = self.take_all(), time.monotonic() + 2
        while len({sum(one.times for one in side) for side in sides(seen, port)}) > 1 and time.monotonic() < give_up:
            time.sleep(0.05)
            seen += self.take_all()
        return sides(seen, port)

    def take_all(self):
        self.dataset.flush()
        with self._lock:
            seen, self._seen = [s for s in self._seen if s.ends.is_tls], []
        return seen

    def wait_for(self, file, is_hooked=True):
        deadline = time.monotonic() + 120
        while self.dataset.tls.has(file) != is_hooked:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self):
        self.dataset.close()


def sides(seen, port):
    return ([s for s in seen if s.ends.asks and s.ends.remote_port == port],
            [s for s in seen if not s.ends.asks and s.ends.local_port == port])


@pytest.fixture(scope="module")
def watching(oracle):
    with closing(Watching(oracle)) as made:
        yield made


def sums(seen):
    counts = Counter()
    for one in seen:
        counts[one.exchange.method, one.exchange.path, one.exchange.status_code, one.exchange.http_version] += one.times
    return counts


def test_every_exchange_of_either_side_is_counted_once(port, watching):
    watching.take(port)
    with closing(HTTPSConnection("127.0.0.1", port, context=ssl._create_unverified_context())) as client:
        for number in range(REQUESTS):
            client.request("GET", f"/{200 + number % 3}?{number}")
            client.getresponse().read()
        client.request("POST", "/body", b"x" * 50_000)
        client.getresponse().read()
    expected = Counter(("GET", f"/{200 + number % 3}", 200 + number % 3, "1.1") for number in range(REQUESTS))

    asked, served = watching.take(port)
    assert sums(asked) == sums(served) == expected + Counter({("POST", "/body", 200, "1.1"): 1})
    assert all(s.latency_ns > 0 for s in asked + served)


@pytest.mark.thorough
def test_more_threads_than_any_table_has_room_for_are_seen_one_after_the_other(port, watching):
    """A server of a thread a connection has so many in an hour; what each leaves behind would fill the tables."""
    rooms = [watching.dataset.loaded.maps[name].spec.max_entries for name in ("hands", "tls_calls")]
    threads = min(rooms) + 100
    watching.take(port)
    with closing(HTTPSConnection("127.0.0.1", port, context=ssl._create_unverified_context())) as client:
        def ask():
            client.request("GET", "/many")
            client.getresponse().read()

        for _ in range(threads):
            one = threading.Thread(target=ask)
            one.start()
            one.join()
    asked, served = watching.take(port)
    assert sums(asked) == sums(served) == {("GET", "/many", 200, "1.1"): threads}
    assert not watching.dataset.loaded.maps["hands"].items()


def test_a_socket_whose_end_was_missed_leaves_nothing_to_the_next_at_its_address(port, oracle, secrets):
    """The hook of ends is taken away; where the next socket lies is for the kernel to say. With raw tracepoints one
    that was somebody's without TLS is not known for another's: what it carries inside TLS is counted as lost.
    """
    def conns(port):
        return {key for key, value in watching.dataset.loaded.maps["conns"].items()
                if key[8] and port in struct.unpack_from("<HH", value, 104)}

    def ask(port):
        for _ in range(REQUESTS):
            with closing(HTTPSConnection("127.0.0.1", port, context=ssl._create_unverified_context())) as client:
                client.request("GET", "/next")
                client.getresponse().read()
        time.sleep(0.3)
        return watching.take_all()

    with serving(secrets) as other, closing(Watching(oracle)) as watching:
        loaded = watching.dataset.loaded
        for one in [one for one in loaded.attachments if "destroy_sock" in one.name]:
            one.close()
            loaded.attachments.remove(one)
        ask(port)
        missed, seen = conns(port), ask(other)
        lost = watching.dataset.losses["http calls in TLS over unknown sockets"]
        is_met_again = missed & conns(other)

    assert missed and sides(seen, port) == ([], [])
    for side in sides(seen, other):
        assert REQUESTS - lost <= sum(s.times for s in side) <= REQUESTS
    if not is_met_again:
        pytest.skip("no socket lay where another had been")


BLOCKED = """
import socket, ssl, sys
plain = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
wrapped = ssl._create_unverified_context().wrap_socket(plain)
print("ready", flush=True)
wrapped.recv(1)
"""


def test_a_thread_that_ends_in_a_call_leaves_nothing_behind(port, watching):
    def calls():
        return [key for key, _ in watching.dataset.loaded.maps["tls_calls"].items()
                if int.from_bytes(key[4:], "little") == process.pid]

    def wait_until(there):
        deadline = time.monotonic() + 60
        while bool(calls()) != there:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with subprocess.Popen([sys.executable, "-c", BLOCKED, str(port)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            wait_until(True)
        finally:
            process.kill()
    wait_until(False)


def test_what_is_not_asked_for_is_not_looked_at(oracle, port):
    seen = []
    dataset = Httpflow(oracle, Options("box", loopback=True, http_tls=False), version_code(), seen.append)
    client = HTTPSConnection("127.0.0.1", port, context=ssl._create_unverified_context())
    with closing(dataset), closing(client):
        client.request("GET", "/unseen")
        client.getresponse().read()
        dataset.flush()
    assert not any(s.ends.is_tls or s.exchange.path == "/unseen" for s in seen)


class Client:
    """Another process, which asks for what it is told to; `command` is what comes before Python."""

    def __init__(self, port, *command, **environment):
        self._process = subprocess.Popen([*command, sys.executable, "-c", CLIENT, str(port)], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout.readline() == "ready\n"
        self.pid = self._process.pid

    def get(self, path):
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)


def libssl():
    found = sorted(Path("/usr/lib").glob("*/libssl.so.3"))
    if not found:
        pytest.skip("there is no libssl.so.3 to copy")
    return found[0]


@pytest.mark.thorough
def test_a_library_replaced_while_it_is_in_use_is_seen_in_both_its_files(port, oracle, tmp_path):
    copy = tmp_path / "libssl.so.3"
    shutil.copy(libssl(), copy)
    replaced = edition(copy)
    with closing(Client(port, LD_LIBRARY_PATH=str(tmp_path))) as old:
        shutil.copy(libssl(), tmp_path / "new")
        (tmp_path / "new").rename(copy)
        with closing(Watching(oracle)) as watching:
            assert watching.dataset.tls.has(replaced) and not watching.dataset.tls.has(edition(copy))
            with closing(Client(port, LD_LIBRARY_PATH=str(tmp_path))) as new:
                watching.wait_for(edition(copy))
                assert old.get("/old") == new.get("/new") == 200
                asked, served = watching.take(port)
    assert {s.exchange.path for s in asked} == {s.exchange.path for s in served} == {"/old", "/new"}


@pytest.mark.thorough
def test_a_library_nobody_else_can_see_is_seen_in_a_process_that_begins_later(port, watching, tmp_path):
    """In a mount namespace of its own, from a file system mounted there."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    inside = f"mount -t tmpfs none {hidden} && cp {libssl()} {hidden}/ && exec env LD_LIBRARY_PATH={hidden} \"$@\""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    with closing(Client(port, "unshare", "--mount", "sh", "-c", inside, "sh", PATH=path)) as at:
        # The process is what sh, and unshare before it, has become.
        file = edition(f"/proc/{at.pid}/root{hidden}/libssl.so.3")
        watching.wait_for(file)
        watching.take(port)
        assert at.get("/hidden") == 200
        asked, served = watching.take(port)
    assert not any(hidden.iterdir())
    assert sums(asked) == sums(served) == {("GET", "/hidden", 200, "1.1"): 1}
    watching.wait_for(file, is_hooked=False)  # nobody uses it any more


def test_files_that_only_say_they_are_libraries_hinder_no_other(port, oracle, tmp_path, monkeypatch, caplog):
    """Anybody may map such files; the last is any fault nobody has thought of. No other collector need look at them:
    they are called what ours alone takes for a library.
    """
    def hooks_in(elf):
        return 1 // (elf.machine != 4242) and tls_hooks.hooks_in(elf)

    monkeypatch.setattr(tls_libraries, "hooks_in", hooks_in)
    monkeypatch.setattr(tls_libraries, "_NAMES", pattern(r"libssl\.so[^/\n]*|crafted\d"))
    whole, hole = library(["SSL_write"]), 1 << 30
    crafted = {"crafted1": library(["SSL_write"], segments=[((1 << 64) - 1, 0, 1 << 20)]),
               "crafted2": with_section(whole, 2, len(whole), hole), "crafted3": elf([], machine=4242)}
    with ExitStack() as mapped:
        for name, data in crafted.items():
            (tmp_path / name).write_bytes(data)
            if name == "crafted2":
                os.truncate(tmp_path / name, len(data) + hole)
            with (tmp_path / name).open("rb") as file:
                mapped.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        with closing(Watching(oracle)) as watching:
            shutil.copy(libssl(), tmp_path / "libssl.so.3")
            with closing(Client(port, LD_LIBRARY_PATH=str(tmp_path))) as late:
                watching.wait_for(edition(tmp_path / "libssl.so.3"))
                assert late.get("/late") == 200
                asked, _ = watching.take(port)
            assert not any(watching.dataset.tls.has(edition(tmp_path / name)) for name in crafted)
    assert sums(asked) == {("GET", "/late", 200, "1.1"): 1}
    told = [r.message for r in caplog.records if r.message.startswith("TLS is not seen")]
    times = [sum(fault in line for line in told) for fault in ("past its end", f"{hole} bytes", "by zero")]
    assert times in ([1, 1, 1], [2, 2, 2])  # the collector of this module is told too


NGINX = configuration("$request_method $uri $status $server_protocol", r"""
    listen 127.0.0.1:{port} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {key};
    location / {{ return 200 "hello\n"; }}
    location /made {{ return 201 "made\n"; }}
    location /gone {{ return 404; }}
    location /files/ {{ alias {home}/files/; }}""")
NGINX_PORT = 18443
URL = f"https://127.0.0.1:{NGINX_PORT}"
HTTPX = f"""
import httpx
for http2 in (True, False):
    with httpx.Client(verify=False, http2=http2) as client:
        for number in range({REQUESTS}):
            assert client.get("{URL}/made", params={{"n": number}}).status_code == 201
        client.post("{URL}/", content=b"x" * 30_000)
        client.get("{URL}/files/big")
"""
CLIENTS = {
    "curl, http 1.1": ("curl", "-skS", "--http1.1", f"{URL}/", f"{URL}/made", f"{URL}/gone?x"),
    "curl, http 2": ("curl", "-skS", "--http2", f"{URL}/", f"{URL}/made", f"{URL}/gone?x", f"{URL}/made"),
    "curl, http 2, at a time": ("curl", "-skSZ", "--http2", *(f"{URL}/made/{n}" for n in range(20))),
    "httpx": (sys.executable, "-c", HTTPX),
    "wget, GnuTLS": ("wget", "-qO", "/dev/null", "--no-check-certificate", f"{URL}/made", f"{URL}/", f"{URL}/gone"),
    "gnutls-cli": ("sh", "-c", "printf 'GET /made HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' | "
                   f"gnutls-cli --insecure -p {NGINX_PORT} 127.0.0.1"),
}


@contextmanager
def nginx(home, secrets):
    (home / "files").mkdir()
    (home / "files/big").write_bytes(bytes(range(256)) * 2000)
    (home / "nginx.conf").write_text(NGINX.format(home=home, port=NGINX_PORT, certificate=secrets[0], key=secrets[1]))
    command = ("nginx", "-c", home / "nginx.conf", "-e", home / "error.log")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while not (home / "pid").exists() or not (home / "pid").read_text().strip():
                assert process.poll() is None and time.monotonic() < deadline, (home / "error.log").read_text()
                time.sleep(0.02)
            yield home / "access.log"
        finally:
            process.terminate()
            process.wait(30)


def logged(log, number):
    """All that nginx has logged since the last time, once it is this much."""
    deadline = time.monotonic() + 60
    while len(lines := log.read_text().splitlines()) < number and time.monotonic() < deadline:
        time.sleep(0.05)
    log.write_text("")
    return Counter((method, path, int(status), version.removeprefix("HTTP/").replace("2.0", "2"))
                   for method, path, status, version in map(str.split, lines))


@pytest.fixture(scope="module")
def log(tmp_path_factory, secrets):
    missing = [name for name in ("nginx", "curl", "wget", "gnutls-cli", "wrk") if not shutil.which(name)]
    if missing:
        cannot(f"not installed: {', '.join(missing)} (make packages-dev)")
    with nginx(tmp_path_factory.mktemp("nginx"), secrets) as made:
        yield made


@pytest.mark.thorough
@pytest.mark.parametrize("client", CLIENTS)
def test_real_programs_are_counted_as_nginx_counts_them(log, watching, client):
    watching.take(NGINX_PORT)
    subprocess.run(CLIENTS[client], capture_output=True, timeout=120)
    expected = logged(log, 1 if client == "gnutls-cli" else 3)
    asked, served = watching.take(NGINX_PORT)

    assert sums(asked) == sums(served) == expected and expected


@pytest.mark.thorough
def test_thousands_at_full_speed_are_counted_once_on_either_side(log, watching):
    watching.take(NGINX_PORT)
    connections, answered, asked, served = 4, Counter(), Counter(), Counter()
    runs = 0
    while sum(answered.values()) < 3000 and runs < 30:
        subprocess.run(("wrk", "-t1", f"-c{connections}", "-d1s", f"{URL}/made"), capture_output=True, timeout=60)
        time.sleep(0.5)
        runs += 1
        sides = watching.take(NGINX_PORT)
        asked, served, answered = asked + sums(sides[0]), served + sums(sides[1]), answered + logged(log, 1)
    sides = watching.take(NGINX_PORT)
    asked, served, answered = asked + sums(sides[0]), served + sums(sides[1]), answered + logged(log, 0)

    # wrk leaves in the middle of things, once a connection: nginx logs also what it could not write any more.
    for side in (asked, served):
        assert not side - answered and sum((answered - side).values()) <= runs * connections
