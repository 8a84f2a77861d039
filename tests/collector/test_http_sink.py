"""The HTTP sinks against real servers on 127.0.0.1 that take, refuse, fail, stall, dribble and hang up."""

import json
import socket
import ssl
import subprocess
import time
from base64 import b64decode
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.config import Options
from collector.pipeline import Pipeline
from collector.sinks import SINKS, check_sink, open_sink, open_sinks
from collector.sinks.outputs import Outputs
from collector.sinks.spec import kind_of
from kcompat.errors import KcompatError
from kcompat.log_lines import without_secrets
from kcompat.offsets import Offsets
from tests.collector.line_server import DEADLINE_S, points, serving, wait_until


def quick(server, kind="datakit", **options):
    return open_sink({"kind": kind, "url": f"http://{server.address}", "backoff_s": 0.01, "longest_backoff_s": 0.02,
                      **options})


def test_points_arrive_in_order_in_gzipped_batches_of_512(server):
    sink = open_sink(server.url)
    sink.write(points(1025))
    sink.flush(DEADLINE_S)
    sink.close()

    assert [len(lines) for _, _, lines in server.requests] == [512, 512, 1]
    assert server.accepted == list(range(1025))
    path, headers, _ = server.requests[0]
    assert path == "/v1/write/network?input=ebpf-net&token=tkn_secret"
    assert headers["Content-Encoding"] == "gzip"
    assert (sink.written, sink.dropped, sink.waiting) == (1025, 0, 0)


def test_whom_the_world_trusts_is_read_in_only_where_there_is_tls(server, monkeypatch):
    read, original = [], ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda **options: read.append(options) or original(**options))

    for kind, times in (("datakit", 0), ("datakit+https", 1)):
        open_sink(f"{kind}://{server.address}").close(0)
        assert len(read) == times


def test_datakit_keeps_flows_and_command_lines_apart_and_in_order(server):
    sink = open_sink(f"datakit://{server.address}")
    sink.write([*points(3), *points(2, 3, "dnsflow"), *points(2, 5, "bash"), *points(600, 7, "httpflow")])
    sink.flush(DEADLINE_S)
    sink.close()

    assert [(path, len(lines)) for path, _, lines in server.requests] == [
        ("/v1/write/network?input=ebpf-net", 5), ("/v1/write/logging?input=ebpf-bash", 2),
        ("/v1/write/network?input=ebpf-net", 512), ("/v1/write/network?input=ebpf-net", 88)]
    assert server.accepted == list(range(607))


def test_datakit_is_told_that_the_collector_cannot_start(server):
    sinks = open_sinks([f"datakit://{server.address}", "table"])
    sinks.report("this kernel cannot do it")
    sinks.close()

    (report,) = map(json.loads, server.reports)
    assert report == {"input": "ebpf", "err_content": "this kernel cannot do it"}


def test_a_token_comes_from_a_file_or_the_environment_and_is_neither_in_names_nor_on_disk(
        server, tmp_path, monkeypatch, spool_home):
    (tmp_path / "token").write_text("tkn_secret\n")
    monkeypatch.setenv("A_TOKEN", "other_secret")
    server.always = 500
    sinks = [quick(server, token_file=str(tmp_path / "token")),
             quick(server, "influxdb2", org="o", token_env="A_TOKEN")]
    for sink in sinks:
        sink.write(points(1))
    wait_until(lambda: len(server.requests) > 2)
    for sink in sinks:
        sink.close(0)

    by_path = {path.partition("?")[0]: (path, headers) for path, headers, _ in server.requests}
    assert by_path["/v1/write/network"][0].endswith("&token=tkn_secret")
    assert by_path["/api/v2/write"][1]["Authorization"] == "Token other_secret"
    assert not [sink.name for sink in sinks if "secret" in sink.name]
    kept = [path for path in spool_home.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if b"secret" in path.read_bytes()]


def test_a_url_keeps_its_token_out_of_the_name(server):
    sink = open_sink(server.url.replace("//", "//user:password@"))
    sink.close()

    assert sink.name == f"http://{server.address}/v1/write/network"


@pytest.mark.parametrize("answer", [500, 503, 429, "hang up", 301, 307, 401, 403, 404, 405, 407])
def test_what_is_not_the_points_fault_is_tried_again(server, answer, caplog):
    server.answers = [answer] * 20
    sink = quick(server)
    sink.write(points(600))
    sink.flush(DEADLINE_S)
    sink.close()

    assert len(server.requests) == 22
    assert server.accepted == list(range(600))
    assert (sink.written, sink.dropped) == (600, 0)
    assert len([record for record in caplog.records if "will be tried again" in record.message]) == 1


def test_an_answer_that_comes_and_goes_is_logged_once_a_minute(server, caplog):
    server.answers = [401, 200] * 5
    sink = quick(server)
    for first in range(0, 50, 10):
        sink.write(points(10, first))
        sink.flush(DEADLINE_S)
    sink.close()

    assert server.accepted == list(range(50))
    (told,) = [record.message for record in caplog.records]
    assert told.endswith('401 Unauthorized: {"error_code": "datakit.badPoint", "message": "no such thing"} '
                         '(will be tried again)')


@pytest.mark.parametrize(("kind", "more", "shown"), [
    ("datakit", {}, lambda request: request.path.rpartition("token=")[2]),
    ("influxdb2", {"org": "o"}, lambda request: request.headers["Authorization"].removeprefix("Token ")),
    ("victoriametrics", {}, lambda request: request.headers["Authorization"].removeprefix("Bearer ")),
    ("http", {"username": "u"}, lambda request: b64decode(request.headers["Authorization"][6:]).decode()[2:]),
])
def test_a_token_that_is_replaced_is_read_again_after_a_refusal(server, tmp_path, caplog, kind, more, shown):
    secret = tmp_path / "secret"
    secret.write_text("old")
    server.always = lambda request: 200 if shown(request) == "new" else 403
    sink = quick(server, kind, **{"password_file" if "username" in more else "token_file": str(secret)}, **more)
    sink.write(points(600))
    wait_until(lambda: len(server.requests) > 2)
    secret.unlink()
    wait_until(lambda: "secret cannot be read" in caplog.text)
    secret.write_text("new")
    sink.flush(DEADLINE_S)
    sink.close()

    assert server.accepted == list(range(600))
    assert (sink.written, sink.dropped) == (600, 0)
    # The server's answer, and the file that was not there.
    assert len(caplog.records) == 2


def test_a_token_that_is_replaced_is_read_again_when_the_configuration_is(server, tmp_path):
    (tmp_path / "token").write_text("old")
    options = Options("box", outputs=(f"datakit://{server.address}?token_file={tmp_path}/token",))
    outputs = Outputs(options.outputs)
    runs = Pipeline(options, Offsets(), outputs)
    outputs.write(points(1))
    outputs.flush(DEADLINE_S)
    (tmp_path / "token").write_text("new")
    runs._change(options)
    outputs.write(points(1, 1))
    outputs.close(DEADLINE_S)

    assert [path.rpartition("=")[2] for path, _, _ in server.requests] == ["old", "new"]


def test_secrets_that_are_to_be_read_again_while_an_answer_is_looked_at_are(server, tmp_path, monkeypatch):
    class Looked(frozenset):
        def __contains__(self, status):
            sink.renew()
            return super().__contains__(status)

    monkeypatch.setattr("collector.sinks.http._UNKNOWN", Looked((401, 403)))
    (tmp_path / "token").write_text("old")
    server.answers = [lambda request: (tmp_path / "token").write_text("new") and 503]
    sink = quick(server, token_file=str(tmp_path / "token"))
    sink.write(points(1))
    sink.flush(DEADLINE_S)
    sink.close()

    assert [path.rpartition("=")[2] for path, _, _ in server.requests] == ["old", "new"]


@pytest.mark.parametrize("answer", [400, 413, 422])
def test_a_refusal_is_dropped_and_the_servers_answer_is_logged_once(server, caplog, answer):
    caplog.set_level("INFO")
    server.answers = [answer, answer]
    sink = open_sink(server.url)
    sink.write(points(1536))
    sink.flush(DEADLINE_S)
    sink.close()

    assert server.accepted == list(range(1024, 1536))
    assert (sink.written, sink.dropped) == (512, 1024)
    (told,) = [record.message for record in caplog.records if "the points are dropped" in record.message]
    assert told.endswith(f'{answer} {HTTPStatus(answer).phrase}: {{"error_code": "datakit.badPoint", '
                         '"message": "no such thing"} (the points are dropped)')
    assert "secret" not in caplog.text


def test_204_is_success(server):
    server.answers = [204]
    sink = open_sink(server.url)
    sink.write(points(1))
    sink.flush(DEADLINE_S)
    sink.close()

    assert sink.written == 1


@pytest.mark.parametrize("answer", ["stall", "dribble"])
def test_a_server_that_never_finishes_its_answer_is_asked_again(server, answer):
    server.answers = [answer]
    sink = quick(server, timeout_s=2)
    for first in range(0, 100, 10):
        sink.write(points(10, first))
    sink.flush(DEADLINE_S)

    # A busy machine may well take longer for an answer, and be asked once more.
    assert list(dict.fromkeys(server.accepted)) == list(range(100))
    assert len(server.requests) >= 11
    sink.close()


def test_a_server_nobody_trusts_gets_nothing_until_it_is_trusted(no_proxy, tmp_path, caplog):
    certificate = tmp_path / "server.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", certificate, "-out", tmp_path / "cert.pem"],
                   check=True, capture_output=True, timeout=DEADLINE_S)
    certificate.write_text(certificate.read_text() + (tmp_path / "cert.pem").read_text())
    with serving(certificate=certificate) as server:
        distrusting = open_sink(f"datakit+https://{server.address}?backoff_s=0.01")
        distrusting.write(points(700))
        wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        distrusting.close(0.1)
        assert (server.requests, distrusting.dropped, distrusting.waiting) == ([], 0, 0)
        trusting = open_sink(f"datakit+https://{server.address}?ca_file={tmp_path}/cert.pem")
        trusting.flush(DEADLINE_S)
        trusting.close()

    assert server.accepted == list(range(700))
    assert trusting.written == 700


def test_close_keeps_its_deadline_with_nobody_listening(no_proxy):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        spec = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        in_memory = open_sink({"kind": "http", "url": spec, "spool": "memory"})
        on_disk = open_sink(spec)
        for sink in (in_memory, on_disk):
            sink.write(points(700))
        start = time.monotonic()
        in_memory.close(0.3)
        on_disk.close(DEADLINE_S)

    assert time.monotonic() - start < DEADLINE_S
    assert (in_memory.written, in_memory.dropped) == (0, 700)
    assert (on_disk.written, on_disk.dropped) == (0, 0)


@pytest.mark.parametrize(("spec", "message"), [
    ("http://", "names no host"), ("http://[::1", "is no URL"), ("datakit://", "names no host"),
    ("datakit://h?tokn=x", "no key tokn"), ("datakit://h?timeout_s=soon", "timeout_s"), ("influxdb2://h", "org"),
    ("datakit+ftp://h", "expected http"), ("datakit://h?token_env=NO_SUCH_THING", "no NO_SUCH_THING"),
    ("datakit://h?token_file=/nonexistent", "/nonexistent cannot be read"),
    ("datakit://h?ca_file=/nonexistent", "/nonexistent"), ({"kind": "nats"}, "url"), ({"kind": "nits"}, "expected"),
])
def test_a_wrong_sink_is_named(spec, message):
    with pytest.raises(KcompatError, match=message):
        open_sink(spec)


def test_what_is_wrong_with_a_sink_is_said_without_its_secrets():
    with pytest.raises(KcompatError) as error:
        check_sink("datakit://user:password@host?token=tkn_secret")

    assert "password" not in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize("password", [
    "geheim/x", "x/geheim", "geheim@x", "x@geheim", "geheim?x", "x?geheim", "geheim：x", "x：geheim", "[geheim]",
    "geheim[", "9/geheim", "x@9/geheim", "geheim#x", "x/y@geheim"])
@pytest.mark.parametrize("spec", ["datakit://user:{}@host/w?tokn=geheim", "http://user:{}@host/w", "kafka://user:{}@host",
                                  "nats://user:{}@host?stream=s", {"kind": "influxdb", "url": "http://user:{}@host"},
                                  {"kind": "influxdb", "url": "user:{}@host"},
                                  {"kind": "kafka", "url": "kafka://user:{}@host/?to=http://x", "topik": "x"}])
def test_a_password_with_what_no_url_has_unwritten_is_not_said(spec, password):
    url = spec if isinstance(spec, str) else spec["url"]
    filled = url.format(password)
    spec = filled if isinstance(spec, str) else {**spec, "url": filled}
    said = []
    try:
        check_sink(spec)
        said.append(SINKS[kind_of(spec)].options(spec).name)
    except KcompatError as error:
        said += [str(error), without_secrets(str(error))]
    if "://" in filled:
        said.append(without_secrets(f"it was {filled} that failed"))
    assert not [words for words in said if "geheim" in words]


@given(st.text())
def test_no_text_crashes_the_reading_of_a_sink(text):
    for kind in ("datakit", "jsonl", "nats"):
        for between in ("://", ":", "+", "?"):
            try:
                check_sink(f"{kind}{between}{text}")
            except KcompatError as error:
                assert str(error)
