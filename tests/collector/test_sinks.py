"""Sinks that write lines or tables, sinks behind a queue, and several sinks at once."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from collector.record import Record
from collector.sinks import Fanout, check_sink, open_sink, open_sinks
from collector.sinks.lines import LineSink
from collector.sinks.outputs import Outputs
from collector.sinks.queued import Queued
from kcompat.errors import KcompatError

REPO = Path(__file__).parents[2]
TAGS = {"src_ip": "10.0.0.1", "src_port": "*", "dst_ip": "8.8.8.8", "dst_port": "443", "direction": "outgoing",
        "transport": "tcp", "process_name": "curl"}


def flows(count, **tags):
    return [Record("netflow", {**TAGS, **tags}, {"bytes_read": number, "bytes_written": 0, "rtt": 1500}, 1)
            for number in range(count)]


class Inner:
    """A sink that keeps what it is given, waits where the test says so, and fails as the test says."""

    name = "inner"

    def __init__(self, error=None):
        self.batches, self.written, self.dropped, self.closed = [], 0, 0, False
        self.go, self.entered, self.error = threading.Event(), threading.Event(), error

    def write(self, records):
        self.entered.set()
        assert self.go.wait(10)
        if self.error:
            raise self.error
        self.batches.append(list(records))
        self.written += len(records)

    def flush(self, deadline_s=0):
        pass

    def close(self, deadline_s=0):
        self.closed = True


@pytest.mark.parametrize("kind", ["jsonl", "lineproto"])
def test_a_file_is_appended_to(kind, tmp_path):
    path = tmp_path / "flows"
    for _ in range(2):
        sink = open_sink(f"{kind}:{path}")
        sink.write(flows(3))
        sink.write([])
        sink.close()

    lines = path.read_text().splitlines()
    assert len(lines) == 6
    assert lines[0].startswith('{"measurement":"netflow"' if kind == "jsonl" else "netflow,direction=outgoing,")
    assert (sink.name, sink.written, sink.dropped) == (f"{kind}:{path}", 3, 0)


def test_a_table_of_dns_says_how_it_was_answered(capsys):
    def answered(rcode, count, latency_ns, **more):
        return Record("dnsflow", {**TAGS, "dst_port": "53"}, {
            "rcode": rcode, "count": count, "latency": latency_ns, "latency_max": latency_ns * 2} | more, 1)

    sink = open_sink("table")
    sink.write([answered(3, 7, 1_500_000), answered(-1, 1, 0), answered(0, 900, 80_000)])
    busiest, second, last = capsys.readouterr().out.splitlines()[2:]
    assert busiest.split()[-4:] == ["NOERROR", "900", "80us", "160us"]
    assert second.split()[-4:] == ["NXDOMAIN", "7", "1.5ms", "3.0ms"]
    assert last.split()[-3:] == ["no", "reply", "1"]

    sink.write([answered(0, 1, 1000, query_name="example.org")])
    assert "example.org" in capsys.readouterr().out


@pytest.mark.parametrize("spec", ["jsonl", "jsonl:-", "lineproto", "table"])
def test_standard_output(spec, capsys):
    sink = open_sink(spec)
    sink.write(flows(23))
    sink.close()

    assert capsys.readouterr().out.count("10.0.0.1") == 23
    assert (sink.written, sink.dropped) == (23, 0)


def test_a_batch_reaches_the_file_in_one_write():
    writes = []

    class Stream:
        def write(self, data):
            writes.append(bytes(data))
            return len(data)

    LineSink("lines", Stream(), lambda records: [record.measurement for record in records]).write(flows(3))

    assert writes == [b"netflow\nnetflow\nnetflow\n"]


def test_half_a_line_of_an_earlier_crash_stays_alone(tmp_path):
    path = tmp_path / "flows.jsonl"
    path.write_text('{"whole":1}\n{"hal')

    open_sink(f"jsonl:{path}").write(flows(2))

    first, torn, *whole = path.read_text().splitlines()
    assert (first, torn) == ('{"whole":1}', '{"hal')
    assert [json.loads(line)["measurement"] for line in whole] == ["netflow"] * 2


def test_a_full_disk_drops_what_did_not_fit_and_goes_on(caplog):
    disk, room = bytearray(), [20]

    class Disk:
        def write(self, data):
            fits = min(len(data), room[0])
            if not fits:
                raise OSError(28, "No space left on device")
            disk.extend(data[:fits])
            room[0] -= fits
            return fits

    sink = LineSink("disk", Disk(), lambda records: ["netflow"] * len(records))
    sink.write(flows(3))
    sink.write(flows(1))
    room[0] = 1000
    sink.write(flows(2))

    assert disk.decode().split("\n") == ["netflow", "netflow", "netf", "netflow", "netflow", ""]
    assert (sink.written, sink.dropped) == (4, 2)
    assert [record.message for record in caplog.records] == [
        "disk: No space left on device; records are dropped until it takes them again"]


@pytest.mark.parametrize(("spec", "message"), [
    ("csv:/tmp/x", "expected table"), ("", "expected table"), ("table:/tmp/x", "takes no path"),
    ("jsonl:", "no path"), ("jsonl:/nonexistent/x", "/nonexistent/x: cannot be opened.*No such file"),
    ])
def test_a_wrong_sink_is_named(spec, message):
    with pytest.raises(KcompatError, match=message):
        open_sink(spec)


def test_when_one_sink_cannot_be_opened_none_stays_open(tmp_path):
    before = len([*Path("/proc/self/fd").iterdir()])

    with pytest.raises(KcompatError):
        open_sinks([f"jsonl:{tmp_path}/x", "nonsense"])

    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_the_table_fits_80_columns_in_a_pipe_and_has_no_colours(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    v6 = "2001:db8:1234:5678:9abc:def0:1234:5678"
    open_sink("table").write(flows(3, src_ip=v6, dst_ip=v6, process_name="systemd-resolve"))

    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert out.count("1.5ms") == 3


def test_the_table_has_colours_and_the_whole_width_on_a_terminal():
    program = ("import sys; sys.path.insert(0, '.')\n"
               "from collector.record import Record\nfrom collector.sinks import open_sink\n"
               f"open_sink('table').write([Record('netflow', {TAGS | {'process_name': 'x' * 90}!r}, {{}}, 1)])\n")
    parent, child = os.openpty()
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "150"}
    subprocess.run([sys.executable, "-c", program], cwd=REPO, stdout=child, env=env, check=True, timeout=60)
    os.close(child)
    out = os.read(parent, 1 << 16).decode()
    os.close(parent)

    assert "\x1b[36m" in out
    assert "x" * 90 in out


def test_an_escape_sequence_in_a_name_does_not_reach_the_terminal(capsys):
    open_sink("table").write(flows(1, process_name="\x1b]0;owned\x07[red]x"))

    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert "[red]" in out


def test_the_table_shows_the_busiest_and_sums_up_the_rest(capsys):
    open_sink("table").write(flows(150))

    out = capsys.readouterr().out
    assert out.count("10.0.0.1") == 100
    assert "and 50 more, 1.2K bytes in all" in out


def test_a_measurement_without_a_layout_shows_its_fields(capsys):
    open_sink("table").write([Record("bash", {}, {"cmd": "ls -l", "pid": "1"}, 1)])

    assert "ls -l" in capsys.readouterr().out


@pytest.mark.parametrize("spec", ["jsonl", "table"])
def test_a_broken_pipe_ends_cleanly(spec):
    program = ("import sys; sys.path.insert(0, '.')\n"
               "from collector.record import Record\nfrom collector.sinks import open_sinks\n"
               f"sinks = open_sinks([{spec!r}])\nflow = Record('netflow', {TAGS!r}, {{'bytes_read': 1}}, 1)\n"
               "try:\n    for _ in range(1000): sinks.write([flow] * 100)\n"
               "except BrokenPipeError: sinks.close(); sys.stderr.write('ended'); sys.exit(0)\n")
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPO, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()

    assert (told, process.returncode) == (b"ended", 0)


def test_a_queue_keeps_batches_and_order():
    inner = Inner()
    inner.go.set()
    queued = Queued(inner)
    for size in (1, 2, 3):
        queued.write(flows(size))
    queued.flush()

    assert [len(batch) for batch in inner.batches] == [1, 2, 3]
    queued.close()
    assert inner.closed
    assert (queued.name, queued.written, queued.dropped) == ("inner", 6, 0)


def test_a_full_queue_drops_the_oldest_and_never_blocks():
    inner = Inner()
    queued = Queued(inner, capacity=10)
    queued.write(flows(1))
    assert inner.entered.wait(5)
    for size in (6, 4, 3):
        queued.write(flows(size))
    assert queued.dropped == 6
    queued.write(flows(25))
    assert queued.dropped == 6 + 7 + 15

    inner.go.set()
    queued.close()
    assert [len(batch) for batch in inner.batches] == [1, 10]
    assert (queued.written, queued.dropped) == (11, 28)


def test_close_drops_what_a_stuck_sink_still_holds():
    inner = Inner()
    queued = Queued(inner)
    queued.write(flows(5))
    queued.write(flows(7))
    assert inner.entered.wait(5)

    queued.close(0.05)

    assert (queued.written, queued.dropped) == (0, 12)
    inner.go.set()


@pytest.mark.parametrize("error", [RuntimeError("bug"), OSError(5, "I/O error")])
def test_a_failing_sink_is_counted_and_goes_on(error):
    inner = Inner(error)
    inner.go.set()
    queued = Queued(inner)
    queued.write(flows(3))
    queued.flush()
    inner.error = None
    queued.write(flows(4))
    queued.close()

    assert (queued.written, queued.dropped) == (4, 3)


def test_one_stuck_sink_does_not_stall_the_others(tmp_path):
    stuck, path = Inner(), tmp_path / "flows"
    sinks = Fanout([stuck, open_sink(f"lineproto:{path}")])

    sinks.write(flows(3))
    sinks.sinks[1].flush()

    assert len(path.read_text().splitlines()) == 3
    stuck.go.set()
    sinks.close()
    assert (sinks.written, sinks.dropped) == (6, 0)


def test_a_sink_whose_reader_left_gets_no_more_and_the_last_one_ends_it():
    gone, good = Inner(BrokenPipeError()), Inner()
    gone.go.set()
    good.go.set()
    sinks = Fanout([gone, good])
    for _ in range(3):
        sinks.write(flows(2))
        sinks.flush()
    sinks.close()

    assert good.written == 6
    assert (gone.written, sinks.sinks[0].dropped) == (0, 4)
    alone = Inner(BrokenPipeError())
    alone.go.set()
    with pytest.raises(BrokenPipeError):
        Fanout([alone]).write(flows(1))


@pytest.mark.parametrize(("module", "spec", "message"), [
    (None, "kafka://[::1", "is no URL"), (None, "kafka://h:no", "the port is no"),
    (None, "nats://h:70000", "the port is no"), (None, "kafka://h:1,h:0", "the port is no"),
    (None, {"kind": "kafka", "url": "h:9092"}, "the URL names no host"),
    ("confluent_kafka", "kafka://h?properties.ling.ms=5", 'No such configuration property: "ling.ms"'),
    ("confluent_kafka", "kafka://h?ca_file=/nonexistent", "/nonexistent: No such file"),
    (None, "otlp://h?headers.X=münchen", "headers.X: has a character that no header can carry"),
    (None, "otlp://h?headers.X=a%0Ab", "no header can carry"),
    (None, "otlp://h?headers.a%20b=x", "is no name of a header"),
])
def test_what_needs_no_network_is_found_wrong_before_anything_is_opened(module, spec, message):
    if module:
        pytest.importorskip(module)
    with pytest.raises(KcompatError, match=message):
        check_sink(spec)


def test_a_password_in_the_environment_of_the_service_alone_is_no_mistake(monkeypatch):
    monkeypatch.delenv("NOT_HERE", raising=False)
    check_sink("kafka://h?username=u&password_env=NOT_HERE&properties.linger.ms=5")


@pytest.mark.parametrize("spec", ["kafka://[::1", "kafka://h?properties.ling.ms=5", "datakit://h?token_file={}/token",
                                  "jsonl:{}/a\0b", "otlp://h?token_file={}/token", "influxdb://h?token_file={}/bytes"])
def test_whatever_is_wrong_with_a_new_output_leaves_the_running_ones(spec, tmp_path, caplog):
    (tmp_path / "token").write_text("geheim\nmünchen")
    (tmp_path / "bytes").write_bytes(b"geheim\xff")
    outputs = Outputs([f"lineproto:{tmp_path}/a"])
    before = {*Path("/proc/self/fd").iterdir()}
    with pytest.raises(KcompatError) as error:
        outputs.reopen([f"lineproto:{tmp_path}/b", spec.format(tmp_path), "datakit://[::1"])
    outputs.write(flows(3))
    outputs.close()

    assert len((tmp_path / "a").read_text().splitlines()) == 3
    assert "geheim" not in str(error.value) and "\n" not in str(error.value)
    assert not {*Path("/proc/self/fd").iterdir()} - before


def test_what_no_library_should_raise_is_said_of_the_sink(monkeypatch):
    def raising(*args):
        raise RuntimeError("a surprise")

    monkeypatch.setattr("collector.sinks.network.Delivery", raising)
    with pytest.raises(KcompatError, match="sink 'datakit://h': RuntimeError: a surprise"):
        open_sink("datakit://user:geheim@h?timeout_s=5")


def test_outputs_that_stay_as_they_were_go_on_when_others_change(tmp_path):
    first, second, third = (f"lineproto:{tmp_path}/{name}" for name in "abc")
    outputs = Outputs([first, second])
    outputs.write(flows(3))
    before = outputs._now.sinks
    outputs.reopen([third, first])
    outputs.write(flows(2))
    with pytest.raises(KcompatError):
        outputs.reopen([first, "nonsense"])
    outputs.write(flows(1))
    outputs.close()

    assert outputs._now.sinks[1] is before[0]
    assert [len((tmp_path / name).read_text().splitlines()) for name in "abc"] == [6, 3, 3]
    assert (outputs.written, outputs.dropped) == (12, 0)
