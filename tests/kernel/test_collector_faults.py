"""What goes wrong around a collector: it is killed, stopped, loses sinks or its database, and still counts right."""

import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from collector import ctnetlink, pipeline, supervised
from collector.config import Options
from collector.metrics import illness
from kcompat.fields import CONNTRACK
from kcompat.offsets import Offsets
from tests.kcompat.cli_tools import COMMAND, collecting, end, environment, kcompat, send_over_loopback
from tests.kernel.living import programs, programs_of, status, until, written

pytestmark = [pytest.mark.kernel, pytest.mark.thorough, pytest.mark.skipif(os.geteuid() != 0, reason="not root")]

SENT = 54321


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def test_killed_at_ten_random_points_it_leaves_nothing_and_begins_again(home):
    chance, held = random.Random(), set()
    for _ in range(10):
        process = subprocess.Popen([*COMMAND, "collect", "--datasets", "netflow,dnsflow,bash", "--interval", "1",
                                    "--output", "jsonl:/dev/null"], env=environment(home), cwd="/",
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(chance.uniform(0, 2.5))
            held |= programs_of(process.pid)
            assert process.poll() is None
        finally:
            process.kill()
            process.wait(20)
    until(programs, lambda there: not there & held)

    with collecting("--interval", "600", "--output", "jsonl:-", home=home) as process:
        assert status(home)["pid"] == process.pid
        assert end(process)[0] == 0


def test_stopped_for_a_while_it_has_counted_everything(home):
    output = home / "stopped.jsonl"
    with collecting("--interval", "1", "--loopback", "--output", f"jsonl:{output}", home=home) as process:
        process.send_signal(signal.SIGSTOP)
        ports = [send_over_loopback(SENT) for _ in range(23)]
        time.sleep(30)
        process.send_signal(signal.SIGCONT)
        until(lambda: [written(output, port) for port in ports], lambda counts: counts == [SENT] * 23)
        assert end(process)[0] == 0


def test_sinks_that_fail_take_nothing_from_the_one_that_does_not(home):
    """A full disk, a name that nobody knows, a port on which nobody listens."""
    output = home / "good.jsonl"
    sinks = ("jsonl:/dev/full", "http://nowhere.invalid/write", "http://127.0.0.1:1/write", f"jsonl:{output}")
    with collecting("--interval", "1", "--loopback", *(word for sink in sinks for word in ("--output", sink)),
                    home=home) as process:
        ports = [send_over_loopback(SENT) for _ in range(5)]
        until(lambda: [written(output, port) for port in ports], lambda counts: counts == [SENT] * 5)
        full = until(lambda: status(home)["sinks"][0], lambda sink: sink["dropped"] and sink)
        code, _, err = end(process)

    assert code == 0 and "Traceback" not in err
    assert full["name"] == "jsonl:/dev/full" and not full["written"]
    assert "/dev/full: No space left on device" in err and "not delivered" in err


def test_a_database_corrupted_under_it_is_put_aside_and_it_goes_on(home):
    output, path, db = home / "corrupt.jsonl", home / "kcompat.toml", home / "o.db"
    path.write_text(f"loopback = true\ninterval_s = 1\noutputs = ['jsonl:{output}']\n")
    with collecting_with(db, path, home) as process:
        for file in home.glob("o.db*"):
            file.write_bytes(b"no database" * 1000)
        path.write_text(path.read_text() + "datasets = ['netflow', 'dnsflow', 'httpflow']\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: status(home), lambda told: told["reloads"] and len(told["datasets"]) == 3)
        port = send_over_loopback(SENT)
        until(lambda: written(output, port), lambda count: count == SENT)
        code, _, err = end(process)

    assert code == 0 and "Traceback" not in err, err
    done = kcompat("--db", db, "db", "verify", home=home)
    assert "Traceback" not in done.stderr


def collecting_with(db, config, home):
    return collecting("--config", config, "--set", f"offsets.db={json.dumps(str(db))[1:-1]}", home=home)


def test_without_bpffs_tracefs_and_locked_memory_it_counts_all_the_same(home):
    """As on a bare machine, in a mount namespace of its own. Only kernels before 4.17 need tracefs, and say so."""
    output = home / "bare.jsonl"
    bare = ("unshare", "--mount", "prlimit", "--memlock=65536:65536", "sh", "-c",
            'umount -l /sys/fs/bpf /sys/kernel/tracing /sys/kernel/debug 2>/dev/null; exec "$@"', "sh")
    with collecting("--interval", "1", "--loopback", "--output", f"jsonl:{output}", home=home, within=bare) as process:
        mounted = Path(f"/proc/{process.pid}/mounts").read_text().split()
        assert not {"/sys/fs/bpf", "/sys/kernel/tracing", "/sys/kernel/debug"} & set(mounted)
        port = send_over_loopback(SENT)
        until(lambda: written(output, port), lambda count: count == SENT)
        assert end(process)[0] == 0


def test_a_clock_that_is_set_by_an_hour_and_back_changes_no_count(oracle, monkeypatch):
    """The machine's own is everybody's: it is this process that is told another time."""
    hour, real, records = 3600, (time.time, time.time_ns), []
    shift_s = 0
    monkeypatch.setattr(time, "time", lambda: real[0]() + shift_s)
    monkeypatch.setattr(time, "time_ns", lambda: real[1]() + shift_s * 10**9)
    sink = SimpleNamespace(name="kept", written=0, dropped=0, write=records.extend, close=lambda *_: None)
    options = Options("box", loopback=True, interval_s=1, datasets=("netflow", "dnsflow"))
    stop, ready = threading.Event(), threading.Event()
    runs = pipeline.Pipeline(options, oracle, sink, ready=ready)
    thread = threading.Thread(target=runs.run, args=(stop,))
    thread.start()
    try:
        assert ready.wait(60)
        ports, began_ns = [], real[1]()
        for shift_s in (0, hour, -hour):  # noqa: B007  what the clock above reads
            ports.append(send_over_loopback(SENT))
            until(lambda: counted(records, ports[-1]), lambda count: count == SENT)
            assert illness(runs.status, time.monotonic()) is None
    finally:
        stop.set()
        thread.join()

    assert [counted(records, port) for port in ports] == [SENT] * 3
    times = [max(r.time for r in records if r.tags.get("dst_port") == str(port)) - began_ns for port in ports]
    assert times[1] > times[0] + hour * 10**9 * 0.9 and times[2] < times[0] - hour * 10**9 * 0.9


def test_offsets_are_asked_for_once_when_a_tracker_is_loaded_later(oracle, monkeypatch, tmp_path):
    """Whether it is loaded a file of ours says: whoever uses the real one would miss it."""
    loaded, asked = tmp_path / "nf_conntrack_max", []
    monkeypatch.setattr(ctnetlink, "_LOADED", loaded)
    without = Offsets(o for o in oracle.values() if o.field.module != CONNTRACK)
    sink = SimpleNamespace(name="none", written=0, dropped=0, write=len, close=lambda *_: None)
    stop, ready = threading.Event(), threading.Event()
    runs = pipeline.Pipeline(Options("box", interval_s=1), without, sink, ready=ready,
                             again=lambda datasets: asked.append(datasets) or oracle)
    thread = threading.Thread(target=runs.run, args=(stop,))
    thread.start()
    try:
        assert ready.wait(60)
        assert (runs.status.nat.tracking, runs.status.nat.how, asked) == (False, "ctnetlink", [])
        loaded.touch()
        until(lambda: runs.status.nat, lambda nat: nat.tracking and asked and "no known offset" not in nat.why)
        time.sleep(3)
        assert asked == [("netflow",)]
    finally:
        stop.set()
        thread.join()


def test_what_can_run_only_later_runs_then(oracle, monkeypatch):
    monkeypatch.setattr(supervised, "_FIRST_RETRY_S", 0.2)
    known, records = [Offsets()], []
    sink = SimpleNamespace(name="kept", written=0, dropped=0, write=records.extend, close=lambda *_: None)
    stop, ready = threading.Event(), threading.Event()
    runs = pipeline.Pipeline(Options("box", loopback=True, interval_s=1), known[0], sink, ready=ready, keep_trying=True,
                             again=lambda datasets: known[0])
    thread = threading.Thread(target=runs.run, args=(stop,))
    thread.start()
    try:
        assert ready.wait(60) and runs.status.running == ()
        assert "no known offset" in illness(runs.status, time.monotonic())
        known[0] = oracle
        until(lambda: runs.status, lambda told: told.running == ("netflow",))
        port = send_over_loopback(SENT)
        until(lambda: counted(records, port), lambda count: count == SENT)
    finally:
        stop.set()
        thread.join()


def counted(records, port):
    return sum(r.fields["bytes_written"] for r in tuple(records) if r.tags.get("dst_port") == str(port)
               and r.tags["direction"] == "outgoing")
