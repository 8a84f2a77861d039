"""A running collector says how it is, reads its configuration again, keeps others out, and leaves nothing behind."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kcompat.sysbpf import enable_run_stats
from tests.kcompat.cli_tools import COMMAND, collecting, end, environment, kcompat, one_line, send_over_loopback
from tests.kernel.living import programs, programs_of, status, until, written
from tests.kernel.test_bash import terminal
from tests.kernel.test_httpflow import hello

# Of how a collector lives the kernel decides little, and in a guest each of these takes half a minute.
pytestmark = [pytest.mark.kernel, pytest.mark.thorough, pytest.mark.skipif(os.geteuid() != 0, reason="not root")]

SENT = 4321


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One for all: what the first compiles the others load."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def config(home):
    """config(text) -> the file a collector reads, again after each SIGHUP."""
    def write(text):
        path = home / "kcompat.toml"
        path.write_text(f"loopback = true\n{text}")
        return path

    return write


def test_it_says_what_it_sees_and_a_second_one_is_refused(home, config):
    path = config("datasets = ['netflow', 'dnsflow']\ninterval_s = 600\noutputs = ['jsonl:-']\n")
    with collecting("--config", path, home=home) as process:
        told = status(home)
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        second = kcompat("collect", "--duration", "1", home=home)
        table = kcompat("status", home=home)
        code, _, _ = end(process)

    assert told["pid"] == process.pid and [one["dataset"] for one in told["datasets"]] == ["netflow", "dnsflow"]
    hooks = {hook["program"]: hook["state"] for one in told["datasets"] for hook in one["hooks"]}
    assert "attached" in hooks.values() and hooks["port 53"] == "attached"
    soft, hard = re.search(r"(?m)^Max open files +(\S+) +(\S+)", limits).groups()
    assert soft == hard
    netflow, dnsflow = (one["map_bytes"] for one in told["datasets"])
    assert dnsflow == 0 and (netflow is None or netflow > 1 << 24)
    assert second.returncode == 1 and f"as process {process.pid}" in one_line(second.stderr)
    assert table.returncode == 0 and max(map(len, table.stdout.splitlines())) <= 80
    assert code == 0 and kcompat("status", home=home).returncode == 2


def test_sighup_takes_over_another_configuration_and_loses_no_byte(home, config):
    before, after = home / "before.jsonl", home / "after.jsonl"
    path = config(f"interval_s = 600\noutputs = ['jsonl:{before}']\n")
    with collecting("--config", path, home=home) as process:
        status(home)
        first = send_over_loopback(SENT)
        config(f"interval_s = 1\noutputs = ['jsonl:{after}']\ntags = {{env = 'prod'}}\nmax_flows = 99\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: status(home), lambda told: told["reloads"] == 1)
        second = send_over_loopback(SENT)
        config("interval_s = nonsense\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: written(after, second), lambda count: count >= SENT)
        code, _, err = end(process)

    assert code == 0 and "Traceback" not in err
    assert "max_flows: for the next start" in err and "the configuration stays as it was" in err
    assert written(before, first) + written(after, first) == SENT and written(before, second) == 0
    assert all(json.loads(line)["tags"]["env"] == "prod" for line in after.read_text().splitlines())


def test_killed_it_leaves_nothing_attached_and_the_next_one_begins(home, config):
    path = config("datasets = ['netflow', 'bash']\ninterval_s = 600\noutputs = ['jsonl:-']\n")
    with collecting("--config", path, home=home) as process:
        status(home)
        ids = programs_of(process.pid)
        assert ids and programs() >= ids
        process.kill()
        process.wait(20)
    until(programs, lambda there: not there & ids)

    with collecting("--config", path, home=home) as process:
        assert status(home)["pid"] == process.pid
        assert end(process)[0] == 0


def test_prometheus_is_told_what_kubernetes_is_told_that_it_is_well(home, config):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    path = config(f"interval_s = 1\noutputs = ['jsonl:/dev/null']\n[metrics]\nlisten = '{port}'\nbpf_run_time = true\n"
                  "[log]\nformat = 'json'\n")
    with collecting("--config", path, home=home) as process:
        status(home)
        until(lambda: scraped(port), lambda told: told.get(("kcompat_flushes_total", ())))
        send_over_loopback(SENT)
        told = until(lambda: scraped(port), lambda told: told.get(("kcompat_records_total", ("netflow",))) and told)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20) as answer:
            assert (answer.status, answer.read()) == (200, b"fine\n")
        code, _, err = end(process)

    assert code == 0 and all(json.loads(line)["level"] for line in err.splitlines()), err
    assert told["kcompat_dataset_up", ("netflow",)] == 1 and told["kcompat_sink_written_total", ("jsonl:/dev/null",)]
    assert sum(count for (name, _), count in told.items() if name == "kcompat_offsets") > 10
    assert any(name == "kcompat_map_entries" for name, _ in told) and told["process_resident_memory_bytes", ()]
    if kernel_counts():
        assert sum(count for (name, _), count in told.items() if name == "kcompat_bpf_run_seconds_total") > 0


def scraped(port):
    """(name, labels' values) -> value; empty while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {(sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


def kernel_counts():
    try:
        os.close(enable_run_stats())
    except OSError:
        return False
    return True


def test_a_sink_that_takes_nothing_does_not_hold_up_the_end(home, config):
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"http://127.0.0.1:{hole.getsockname()[1]}/write"
        path = config(f"interval_s = 1\noutputs = ['{url}', 'jsonl:/dev/null']\n")
        with collecting("--config", path, home=home) as process:
            send_over_loopback(SENT)
            until(lambda: status(home), lambda told: told["datasets"][0]["records"])
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=60)[1]  # a busy machine; the deadlines themselves are of 4 s

    assert process.returncode == 0 and "Traceback" not in said, said
    # What was not taken waits for the next start.
    kept = [path for path in (home / "spool").rglob("*") if path.is_file() and path.stat().st_size]
    assert "lost: nothing" in said and kept


def test_what_is_redacted_is_in_no_output_of_any_dataset(home, config):
    output = home / "redacted.jsonl"
    path = config(f"datasets = ['httpflow', 'bash']\ninterval_s = 1\noutputs = ['jsonl:{output}']\n"
                  "redact = ['path=/tokens/([^/]+)', 'command=s3cret\\w*']\n")
    with collecting("--config", path, home=home) as process, HTTPServer(("127.0.0.1", 0), Answer) as server, \
            terminal() as shell:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/tokens/abc123/use", timeout=20) as got:
                assert got.read() == b"hello"

        def seen():
            # The first line is read before the collector is there to see it.
            shell.type(b"true s3cretive kcompat")
            return [json.loads(line)["fields"] for line in output.read_text().splitlines()]

        until(seen, lambda told: any(one.get("cmd") == "true *** kcompat" for one in told)
              and sum(one["count"] for one in told if one.get("path") == "/tokens/***/use") == 6)
        server.shutdown()
        assert end(process)[0] == 0
    assert "s3cret" not in output.read_text() and "abc123" not in output.read_text()


def test_netflow_calls_a_server_by_what_clients_of_tls_ask_it_for(home, config):
    output = home / "named.jsonl"
    path = config(f"datasets = ['netflow', 'httpflow']\ninterval_s = 1\noutputs = ['jsonl:{output}']\n")
    with collecting("--config", path, home=home) as process:
        status(home)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0]:
                client.sendall(hello("front.example.org"))

        def named():
            records = [json.loads(line) for line in output.read_text().splitlines()]
            return [r["tags"].get("dst_domain") for r in records if r["tags"].get("dst_port") == str(port)]

        assert until(named, lambda names: names) == ["front.example.org"]
        assert end(process)[0] == 0


def test_a_service_manager_hears_that_it_is_ready_alive_and_about_to_end(home, config, tmp_path):
    path = config("datasets = ['dnsflow']\ninterval_s = 600\noutputs = ['jsonl:/dev/null']\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        told = environment(home) | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        with subprocess.Popen([*COMMAND, "collect", "--config", path], env=told, cwd="/",
                              stderr=subprocess.DEVNULL) as process:
            try:
                heard = [manager.recv(4096).decode() for _ in range(4)]
                process.terminate()
                while "STOPPING=1" not in heard:
                    heard.append(manager.recv(4096).decode())
                assert process.wait(60) == 0
            finally:
                process.kill()

    assert heard[:4] == ["READY=1", "WATCHDOG=1", "STATUS=collecting dnsflow", "WATCHDOG=1"]


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        """Nobody asked."""
