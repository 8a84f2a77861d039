"""`kcompat collect` from outside: its signals, its outputs, what it says when nothing can be collected."""

import json
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request

import pytest
from line_protocol_parser import parse_line

from tests.kcompat.cli_tools import COMMAND, collecting, end, environment, kcompat, one_line, send_over_loopback
from tests.kernel.living import status

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="not root")]

SENT = 12345


@pytest.fixture
def home(tmp_path):
    return tmp_path


def of_port(records, port):
    return [r for r in records if r["tags"]["dst_port"] == str(port) and r["tags"]["direction"] == "outgoing"]


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_flushes_before_it_ends(home, number, status):
    output = home / "flows.jsonl"
    with collecting("--interval", "600", "--loopback", "--output", f"jsonl:{output}", home=home) as process:
        port = send_over_loopback(SENT)
        code, out, err = end(process, number)

    assert code == status and "Traceback" not in err
    (record,) = of_port(map(json.loads, output.read_text().splitlines()), port)
    assert record["fields"]["bytes_written"] == SENT
    assert out == ""


def test_a_duration_ends_it_with_a_summary(home):
    done = kcompat("collect", "--duration", "0.3", "--loopback", "--exclude", "process=nobody", home=home)

    assert done.returncode == 0 and "Traceback" not in done.stderr
    # Other programs' datagrams are seen too, so what was lost is not ours to say.
    assert re.search(r" in 1 interval with \w+ hooks; lost: .", done.stderr.splitlines()[-1])


def test_several_outputs_get_the_same_records(home):
    jsonl, lines = home / "a.jsonl", home / "a.lp"
    with collecting("--interval", "600", "--loopback", "--hostname", "box", "--output", f"jsonl:{jsonl}", "--output",
                    f"lineproto:{lines}", "--output", "table", home=home) as process:
        port = send_over_loopback(SENT)
        code, out, _ = end(process)

    assert code == 0
    (record,) = of_port(map(json.loads, jsonl.read_text().splitlines()), port)
    (point,) = of_port(map(parse_line, lines.read_text().splitlines()), port)
    assert point["fields"] == record["fields"] and point["time"] == record["time"]
    assert record["tags"]["host"] == "box"
    assert f"127.0.0.1:{port}" in out


def test_minus_is_standard_output_and_nothing_else_is_there(home):
    with collecting("--interval", "600", "--loopback", "--output", "jsonl:-", home=home) as process:
        port = send_over_loopback(SENT)
        _, out, _ = end(process)

    assert len(of_port([json.loads(line) for line in out.splitlines()], port)) == 1


def test_an_excluded_port_is_left_out(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with collecting("--interval", "600", "--loopback", "--output", "jsonl:-", "--exclude", f"port={port}",
                        home=home) as process:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            _, out, _ = end(process)

    assert of_port([json.loads(line) for line in out.splitlines()], port) == []


def test_a_reader_that_leaves_ends_it_quietly(home):
    with collecting("--interval", "1", "--loopback", "--output", "jsonl:-", home=home) as process:
        process.stdout.close()
        send_over_loopback(SENT)
        code = process.wait(timeout=20)
        err = process.stderr.read()

    assert code == 0 and "Traceback" not in err and "BrokenPipe" not in err


def test_offsets_that_are_not_known_load_nothing(home):
    done = kcompat("--db", home / "empty.db", "collect", "--source", "db", "--duration", "1", home=home)

    assert done.returncode == 1 and "empty.db" in one_line(done.stderr)


def test_a_service_waits_where_nothing_can_run_says_why_and_ends_when_told_to(home):
    """Started anew each time it would fill the journal, and forget that it has tried."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket() as taken:
        manager.bind(str(home / "notify"))
        manager.settimeout(60)
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.close()
        command = (*COMMAND, "--db", str(home / "empty.db"), "collect", "--keep-trying", "--source", "db", "--datasets",
                   "netflow,httpflow", "--set", f"metrics.listen={port}", "--output", "jsonl:/dev/null")
        with subprocess.Popen(command, env=environment(home) | {"NOTIFY_SOCKET": str(home / "notify")}, cwd="/",
                              stderr=subprocess.PIPE, text=True) as process:
            try:
                heard = [manager.recv(4096).decode() for _ in range(2)]
                told = status(home)
                with pytest.raises(urllib.error.HTTPError) as ill:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20)
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=20) as lives:
                    assert lives.status == 200
                code, _, err = end(process)
            finally:
                process.kill()

    assert heard == ["READY=1", "STATUS=no dataset runs; off: netflow, httpflow"]
    assert ill.value.code == 503 and "empty.db" in ill.value.read().decode()
    assert all("empty.db" in one["reason"] and one["retry_in_s"] > 0 for one in told["datasets"])
    assert code == 0 and "Traceback" not in err
    for name in ("netflow", "httpflow"):
        assert len(re.findall(f"^kcompat: {name} is not loaded: .*; tried again in 30 s$", err, re.M)) == 1, err
    assert "0 records in 1 interval with no hooks" in err
