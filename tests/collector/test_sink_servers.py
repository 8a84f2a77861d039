"""Every network sink against the real server it is for, started here on 127.0.0.1, asked back, points equal."""

import asyncio
import gzip
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from collector.config import Options
from collector.dns_exchanges import Exchange as DnsExchange
from collector.dns_flows import DnsFlows
from collector.http_exchanges import Ends, Seen
from collector.http_flows import HttpFlows
from collector.protocols.exchange import Exchange as HttpExchange
from collector.record import Record, to_json
from collector.sinks import open_sink
from tests.collector.line_server import DEADLINE_S, wait_until

pytestmark = pytest.mark.usefixtures("no_proxy")

V4 = bytes(10) + b"\xff\xff"
BEGIN_NS = 1_764_000_000_000_000_000
WEB_1 = Options("web-1")
# What is hard to carry: quotes, backslashes, commas, non-ASCII, 64 bits, floats, booleans, empty tags.
NASTY = Record("netflow", {"host": "web-1", "process_name": "a b,c=d", "dst_domain": "münchen.example", "none": ""},
               {"bytes_read": (1 << 63) - 1, "ratio": 0.25, "truncated": True, "path": 'say "hi"\\ there'}, BEGIN_NS)


def flows(count):
    return [NASTY, *(Record("netflow", {"host": "web-1", "pid": str(number % 7), "src_port": str(number)},
                            {"bytes_read": number, "bytes_written": 2 * number}, BEGIN_NS + number + 1)
                     for number in range(count))]


def bash_lines(count):
    return [Record("bash", {"host": "web-1", "source": "bash"},
                   {"cmd": f"ls {number}", "pid": "1", "message": f"m{number}"}, BEGIN_NS + number)
            for number in range(count)]


def exchanges():
    """As httpflow and dnsflow make them: of one pair of ends, different in nothing but fields."""
    ends = Ends(V4 + bytes((10, 0, 0, 1)), 40_000, V4 + bytes((10, 0, 0, 2)), 80, 7, 42, "curl", True, False)
    flows = HttpFlows(lambda: WEB_1)
    queries = DnsFlows(lambda: WEB_1, lambda netns, address: address == ends.local)
    for path, status in (("/a", 200), ("/b", 200), ("/b", 404), ("/c", 500)):
        flows.add(Seen(ends, HttpExchange("GET", path, False, status, "1.1", 5, ""), 1, 5))
    for rcode in (0, 2, 3, -1):
        queries.add(DnsExchange(ends.netns, ends.local, 40_000, ends.remote, 53, 17, rcode, 5, b""))
    return [*flows.take(BEGIN_NS, lambda netns, address: ""), *queries.take(BEGIN_NS, lambda netns, address: "")]


def command(*names):
    for name in names:
        if found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"):
            return found
    pytest.skip(f"{names[0]} is not installed")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def listening(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


@pytest.fixture
def run(tmp_path):
    """run(port, *command) -> starts a server, waits until it listens; ends with the test."""
    processes = []

    def run(port, *arguments):
        log = (tmp_path / f"server{len(processes)}.log").open("wb")
        processes.append(subprocess.Popen(arguments, stdout=log, stderr=log, cwd=tmp_path))
        log.close()
        wait_until(lambda: processes[-1].poll() is not None or listening(port))
        assert processes[-1].poll() is None, (tmp_path / f"server{len(processes) - 1}.log").read_text()
        return processes[-1]

    yield run
    for process in processes:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def asked(port, path, **query):
    data = urllib.parse.urlencode(query).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, DEADLINE_S) as answer:
        return [json.loads(line) for line in answer.read().splitlines() if line.strip()]


def delivered(sink, records):
    sink.write(records)
    sink.flush(DEADLINE_S)
    sink.close(DEADLINE_S)
    assert (sink.written, sink.dropped, sink.waiting) == (len(records), 0, 0)


def test_influxdb(run, tmp_path):
    http_port, rpc_port = free_ports(2)
    config = tmp_path / "influxdb.conf"
    config.write_text(f'''reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
dir = "{tmp_path}/meta"
[data]
dir = "{tmp_path}/data"
wal-dir = "{tmp_path}/wal"
[http]
bind-address = "127.0.0.1:{http_port}"
''')
    run(http_port, command("influxd"), "-config", config)
    asked(http_port, "/query", q="CREATE DATABASE flows")
    records = flows(1300) + bash_lines(3) + exchanges()
    delivered(open_sink(f"influxdb://127.0.0.1:{http_port}?database=flows"), records)

    got = []
    for name in ("netflow", "bash", "httpflow", "dnsflow"):
        # GROUP BY * gives tags apart from fields.
        (answer,) = asked(http_port, "/query", db="flows", epoch="ns", q=f'SELECT * FROM "{name}" GROUP BY *')
        for series in answer["results"][0]["series"]:
            for row in series["values"]:
                values = dict(zip(series["columns"], row, strict=True))
                got.append(Record(name, {key: value for key, value in series["tags"].items() if value},
                                  {key: value for key, value in values.items() if key != "time" and value is not None},
                                  values["time"]))
    assert canonical(got) == canonical(records)


@pytest.mark.parametrize("kind", ["victoriametrics", "influxdb2"])
def test_victoriametrics(run, tmp_path, kind):
    """It speaks the write API of InfluxDB 2 as well, which Debian does not have. It knows numbers only."""
    (port,) = free_ports(1)
    run(port, command("victoria-metrics", "victoria-metrics-prod"), "-storageDataPath", tmp_path / "vm",
        "-httpListenAddr", f"127.0.0.1:{port}", "-retentionPeriod", "100y", "-memory.allowedBytes", "64MB",
        "-httpAuth.username", "kcompat", "-httpAuth.password", "geheim")
    (tmp_path / "password").write_text("geheim\n")
    records = [record._replace(time=record.time // 10**6 * 10**6 + number * 10**6)
               for number, record in enumerate(flows(700)[1:])]
    more = "&org=x" if kind == "influxdb2" else ""
    # Strings are dropped there: what tells an exchange is in labels, unless it is taken for an InfluxDB.
    apart = exchanges() if kind == "victoriametrics" else []
    records += apart
    delivered(open_sink(f"{kind}://127.0.0.1:{port}?username=kcompat&password_file={tmp_path}/password{more}"), records)

    def told():
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/v1/export?match[]={{__name__!=%22%22}}"
                                         "&reduce_mem_usage=1", headers={"Authorization": "Basic a2NvbXBhdDpnZWhlaW0="})
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    flows_wanted = {(f"netflow_{field}", record.tags["src_port"], record.tags["pid"], value, record.time // 10**6)
                    for record in records if record.measurement == "netflow" for field, value in record.fields.items()}
    sums = ("count", "latency", "latency_max")
    wanted = {(f"{record.measurement}_{name}", record.fields.get("path", ""), str(record.fields.get("rcode", "")),
               str(record.fields.get("status_code", "")), record.fields[name])
              for record in apart for name in sums if name in record.fields}
    assert len(wanted) == 4 * 2 * bool(apart) + 4 * 3 * bool(apart)
    wait_until(lambda: sum(len(series["values"]) for series in told()) >= len(flows_wanted) + len(wanted))
    series = told()
    assert {(one["metric"]["__name__"], one["metric"]["src_port"], one["metric"]["pid"], value, time)
            for one in series if one["metric"]["__name__"].startswith("netflow")
            for value, time in zip(one["values"], one["timestamps"], strict=True)} == flows_wanted
    labels = ("__name__", "path", "rcode", "status_code")
    assert {(*(one["metric"].get(name, "") for name in labels), value)
            for one in series if not one["metric"]["__name__"].startswith("netflow")
            for value in one["values"]} == wanted


def test_nats_jetstream(run, tmp_path):
    nats = pytest.importorskip("nats")
    (port,) = free_ports(1)
    run(port, command("nats-server"), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", tmp_path / "js",
        "--user", "kcompat", "--pass", "geheim")
    (tmp_path / "password").write_text("geheim")
    records = flows(1300) + bash_lines(3)
    sink = open_sink(f"nats://127.0.0.1:{port}?username=kcompat&password_file={tmp_path}/password")
    delivered(sink, records)

    async def consumed():
        client = await nats.connect(f"nats://127.0.0.1:{port}", user="kcompat", password="geheim")
        stream = client.jetstream()
        unacknowledged = nats.js.api.ConsumerConfig(ack_policy=nats.js.api.AckPolicy.NONE)
        subscription = await stream.pull_subscribe("kcompat.>", stream="KCOMPAT", config=unacknowledged)
        messages = []
        while len(messages) < len(records):
            messages += await subscription.fetch(min(500, len(records) - len(messages)), timeout=DEADLINE_S)
        count = (await stream.stream_info("KCOMPAT")).state.messages
        await client.close()
        return messages, count

    messages, count = asyncio.run(consumed())
    assert count == len(records)
    assert [message.data.decode() for message in messages] == [to_json(record) for record in records]
    assert {message.subject for message in messages} == {"kcompat.netflow", "kcompat.bash"}


def test_nats_leaves_out_what_it_is_sent_twice(run, tmp_path):
    pytest.importorskip("nats")
    from collector.sinks.nats import JetStream
    from collector.sinks.options import Nats
    (port,) = free_ports(1)
    run(port, command("nats-server"), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", tmp_path / "js",
        "-m", str(monitor := free_ports(1)[0]))
    transport = JetStream(Nats(url=f"nats://127.0.0.1:{port}"))
    (chunk,) = map(transport.pack, transport.encode(flows(99)))
    transport.send(chunk)
    transport.send(chunk)
    transport.close()

    with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/jsz", timeout=DEADLINE_S) as answer:
        assert json.load(answer)["messages"] == 100


def test_nats_that_comes_back_gets_what_waited(run, tmp_path, caplog):
    pytest.importorskip("nats")
    (port,) = free_ports(1)
    arguments = (port, command("nats-server"), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", tmp_path / "js")
    first = run(*arguments)
    sink = open_sink(f"nats://127.0.0.1:{port}?backoff_s=0.05&longest_backoff_s=0.1&timeout_s=5")
    sink.write(flows(99))
    sink.flush(DEADLINE_S)
    first.terminate()
    first.wait(DEADLINE_S)
    sink.write(flows(199))
    wait_until(lambda: "will be tried again" in caplog.text)
    run(*arguments)
    sink.flush(DEADLINE_S)

    assert (sink.written, sink.dropped, sink.waiting) == (300, 0, 0)
    sink.close()


def test_nats_whose_password_is_replaced_gets_what_waited(run, tmp_path, caplog):
    pytest.importorskip("nats")
    (port,) = free_ports(1)
    run(port, command("nats-server"), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", tmp_path / "js",
        "--user", "kcompat", "--pass", "geheim")
    (tmp_path / "password").write_text("of yesterday")
    sink = open_sink(f"nats://127.0.0.1:{port}?username=kcompat&password_file={tmp_path}/password&backoff_s=0.05"
                     "&longest_backoff_s=0.1")
    sink.write(flows(99))
    wait_until(lambda: "Authorization Violation" in caplog.text)
    (tmp_path / "password").write_text("geheim")
    sink.flush(DEADLINE_S)

    assert (sink.written, sink.dropped, sink.waiting) == (100, 0, 0)
    sink.close()


def test_kafka():
    """The broker is librdkafka's own, which it has for tests of its clients: it speaks the protocol over TCP."""
    kafka = pytest.importorskip("confluent_kafka")
    broker = kafka.Producer({"test.mock.num.brokers": 1})
    found = broker.list_topics(timeout=DEADLINE_S).brokers
    (address,) = (f"{one.host}:{one.port}" for one in found.values())
    records = flows(1300) + bash_lines(3)
    sink = open_sink(f"kafka://{address}?topic=flows&properties.linger.ms=5")
    delivered(sink, records)

    consumer = kafka.Consumer({"bootstrap.servers": address, "group.id": "test", "auto.offset.reset": "earliest"})
    consumer.subscribe(["flows"])
    messages = []
    wait_until(lambda: messages.extend(consumer.consume(500, 1)) or len(messages) >= len(records))
    consumer.close()
    assert {message.key() for message in messages} == {b"web-1"}
    assert [message.value().decode() for message in messages] == [to_json(record) for record in records]


def test_kafka_that_is_not_there_is_tried_again(caplog):
    pytest.importorskip("confluent_kafka")
    (port,) = free_ports(1)
    sink = open_sink(f"kafka://127.0.0.1:{port}?timeout_s=1&backoff_s=0.05&longest_backoff_s=0.1")
    sink.write(flows(9))
    wait_until(lambda: "will be tried again" in caplog.text)
    assert (sink.written, sink.dropped, sink.waiting) == (0, 0, 10)
    sink.close(DEADLINE_S)
    assert (sink.written, sink.dropped) == (0, 0)


class Collector(BaseHTTPRequestHandler):
    """Decodes OTLP by OpenTelemetry's own definition of it, and may reject some, as it allows."""

    def do_POST(self):
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
            ExportLogsServiceRequest,
            ExportLogsServiceResponse,
        )
        body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, self.headers["Content-Type"]) == ("/v1/logs", "application/x-protobuf")
        self.server.requests.append((dict(self.headers), ExportLogsServiceRequest.FromString(body)))
        answer = ExportLogsServiceResponse()
        if self.server.rejects:
            answer.partial_success.rejected_log_records = self.server.rejects
            answer.partial_success.error_message = "too old"
        self.send_response(200 if self.server.wanted in (None, self.headers["Authorization"]) else 401)
        said = answer.SerializeToString()
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *args):
        pass


@pytest.fixture
def otlp():
    pytest.importorskip("opentelemetry.sdk")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.requests, server.rejects, server.wanted = [], 0, None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_otlp(otlp, monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("A_TOKEN", "geheim")
    records = flows(600) + bash_lines(3)
    delivered(open_sink(f"otlp://127.0.0.1:{otlp.server_port}?token_env=A_TOKEN&headers.X-Tenant=a"), records)

    got, bodies = [], []
    for headers, request in otlp.requests:
        assert (headers["Authorization"], headers["X-Tenant"]) == ("Bearer geheim", "a")
        (resource,) = request.resource_logs
        about = {one.key: one.value.string_value for one in resource.resource.attributes}
        assert [about[key] for key in ("service.name", "host.name", "deployment.environment")] == [
            "kcompat", "web-1", "test"]
        for log in resource.scope_logs[0].log_records:
            values = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in log.attributes}
            got.append((log.event_name, values, log.time_unix_nano))
            bodies += [log.body.string_value] if log.HasField("body") else []
    assert got == [(record.measurement, {key: value for key, value in {**record.tags, **record.fields}.items()
                                         if value != "" and key != "message"}, record.time) for record in records]
    assert bodies == ["m0", "m1", "m2"]


def test_otlp_whose_token_is_replaced_gets_what_waited(otlp, tmp_path):
    (tmp_path / "token").write_text("old")
    otlp.wanted = "Bearer new"
    sink = open_sink(f"otlp://127.0.0.1:{otlp.server_port}?token_file={tmp_path}/token&headers.X-Tenant=a&backoff_s=0.01")
    sink.write(flows(99))
    wait_until(lambda: len(otlp.requests) > 1)
    (tmp_path / "token").write_text("new")
    sink.flush(DEADLINE_S)

    assert (sink.written, sink.dropped) == (100, 0)
    assert {headers["X-Tenant"] for headers, _ in otlp.requests} == {"a"}
    sink.close()


def test_otlp_says_what_was_rejected(otlp, caplog):
    otlp.rejects = 7
    sink = open_sink(f"otlp://127.0.0.1:{otlp.server_port}")
    sink.write(flows(99))
    sink.flush(DEADLINE_S)

    assert (sink.written, sink.dropped) == (93, 7)
    assert "too old (the points are dropped)" in caplog.text
    sink.close()


def canonical(records):
    """As line protocol can carry them, in no order."""
    return sorted((record.measurement, record.time, sorted(item for item in record.tags.items() if item[1]),
                   sorted((key, value) for key, value in record.fields.items())) for record in records)
