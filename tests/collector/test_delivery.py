"""Delivery when a server is down, slow or gone, and when the collector is killed: what arrives, what is counted."""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from collector.sinks import open_sink, open_sinks
from collector.sinks.chunk import Chunk, Retry
from collector.sinks.delivery import Backoff, Delivery
from collector.sinks.http import plain
from collector.sinks.options import Http
from collector.sinks.segments import Segments
from collector.sinks.spool import Spool
from tests.collector.line_server import DEADLINE_S, Server, points, serving, unreadable, wait_until

REPO = Path(__file__).parents[2]
BATCH = 512
# A collector that never stops: it writes ever more points, or none, to the sink it is told.
COLLECTOR = """
import sys, time
from collector.sinks import open_sink
from tests.collector.line_server import points
url, spool_bytes, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sink = open_sink({"kind": "datakit", "url": url, "spool_bytes": spool_bytes, "backoff_s": 0.01,
                  "longest_backoff_s": 0.05})
for first in range(0, count, 600):
    sink.write(points(600, first))
    time.sleep(0.001)
print("written", flush=True)
while True:
    print(sink.waiting, sink.dropped, flush=True)
    time.sleep(0.05)
"""


def collector(address, spool_bytes, count=0):
    arguments = [f"http://{address}", str(spool_bytes), str(count)]
    return subprocess.Popen([sys.executable, "-c", COLLECTOR, *arguments], cwd=REPO, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)


def killed(process):
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)


def on_disk(spool, copy):
    """The numbers of the points that lie in the one spool there, read from a copy."""
    (directory,) = spool.iterdir()
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    queue, numbers = Segments(copy, 1 << 30), []
    while (head := queue.head()) is not None:
        numbers += [int(line.rpartition(" ")[2]) - 1 for line in gzip.decompress(head.payload).decode().split("\n")]
        queue.done(head.key)
    queue.close()
    return numbers


def test_a_server_that_is_down_for_long_gets_everything_in_order(no_proxy, caplog):
    reserved = Server()
    port = reserved.server_port
    reserved.server_close()
    sink = open_sink(f"datakit://127.0.0.1:{port}?backoff_s=0.01&longest_backoff_s=0.05")
    for first in range(0, 21_000, 600):
        sink.write(points(600, first))
    wait_until(lambda: "will be tried again" in caplog.text)
    wait_until(lambda: sink.waiting == 21_000)
    with serving(port) as server:
        sink.flush(DEADLINE_S)
        assert server.accepted == list(range(21_000))
    assert (sink.written, sink.dropped, sink.waiting) == (21_000, 0, 0)
    sink.close()


def test_past_the_bound_the_oldest_are_lost_counted_and_said(server, caplog):
    server.always = 500
    sink = open_sink({"kind": "datakit", "url": f"http://{server.address}", "spool_bytes": 20_000, "backoff_s": 0.01,
                      "longest_backoff_s": 0.05})
    for first in range(0, 21_000, 600):
        sink.write(points(600, first))
    wait_until(lambda: sink.dropped and sink.dropped + sink.waiting >= 21_000 - BATCH)
    server.always = 200
    sink.flush(DEADLINE_S)

    assert len(server.accepted) == sink.written
    assert sink.written + sink.dropped == 21_000
    assert server.accepted == sorted(server.accepted)
    assert server.accepted[-1000:] == list(range(20_000, 21_000))
    assert len([record for record in caplog.records if "the spool is full" in record.message]) == 1
    sink.close()


def test_one_bad_sink_stalls_no_other(server, tmp_path, caplog):
    with serving() as stalled, serving() as refusing, serving() as failing:
        stalled.always, refusing.always, failing.always = "stall", 400, 503
        sinks = open_sinks([*(f"datakit://{one.address}" for one in (stalled, refusing, failing, server)),
                            f"jsonl:{tmp_path}/flows"])
        for first in range(0, 6000, 600):
            sinks.write(points(600, first))
        good, file = sinks.sinks[3:]
        good.flush(DEADLINE_S)
        file.flush(DEADLINE_S)

        assert server.accepted == list(range(6000))
        assert len((tmp_path / "flows").read_text().splitlines()) == 6000
        wait_until(lambda: sinks.sinks[1].dropped == 6000)
        wait_until(lambda: [sink.waiting for sink in sinks.sinks[:4]] == [6000, 0, 6000, 0])
        for one in (stalled, failing):
            one.always = 200
        stalled.released.set()
        sinks.close(DEADLINE_S)


def test_lag_is_the_age_of_the_oldest(server):
    server.always = "stall"
    sink = open_sink(f"datakit://{server.address}")
    assert sink.lag_s == 0
    sink.write(points(3))
    wait_until(lambda: sink.lag_s > 0.05)
    server.always = 200
    server.released.set()
    sink.flush(DEADLINE_S)
    assert (sink.lag_s, sink.waiting) == (0, 0)
    sink.close()


def test_a_record_that_cannot_be_spelled_costs_only_itself(server):
    sink = open_sink(f"datakit://{server.address}")
    sink.write([*points(3), points(1)[0]._replace(fields={}), *points(3, 3)])
    sink.flush(DEADLINE_S)

    assert server.accepted == [0, 1, 2, 3, 4, 5]
    assert (sink.written, sink.dropped) == (6, 1)
    sink.close()


def test_pauses_double_up_to_the_longest_with_jitter():
    backoff = Backoff(0.5, 30)
    pauses = [[backoff.pause_s(failures) for _ in range(200)] for failures in (1, 2, 3, 50, 5000)]

    assert all(longest / 2 <= pause <= longest for longest, some in zip((0.5, 1, 2, 30, 30), pauses, strict=True)
               for pause in some)
    assert all(len(set(some)) > 100 for some in pauses)


def test_a_bug_in_a_transport_neither_ends_the_sink_nor_loses_points(caplog):
    class Buggy:
        name = "buggy"

        def __init__(self):
            self.errors, self.sent = [ZeroDivisionError("bug"), Retry("later")], []

        def encode(self, records):
            return [Chunk("", len(records), b"x")]

        def pack(self, chunk):
            return chunk

        def send(self, chunk):
            if self.errors:
                raise self.errors.pop(0)
            self.sent.append(chunk.points)

        def close(self):
            pass

    sink = Delivery(Buggy(), Spool(None), Backoff(0.001, 0.002))
    sink.write(points(3))
    sink.flush(DEADLINE_S)

    assert (sink.written, sink.dropped) == (3, 0)
    assert "ZeroDivisionError: bug (will be tried again)" in caplog.text
    sink.close()


def test_a_disk_that_fails_while_it_is_sent_ends_nothing(server, spool_home, caplog):
    server.always = 503
    sink = open_sink(f"datakit://{server.address}?backoff_s=0.01&longest_backoff_s=0.05")
    sink.write(points(2000))
    wait_until(lambda: server.requests and sink.waiting == 2000)
    with unreadable(spool_home):
        server.always = 200
        wait_until(lambda: "Input/output error: " in caplog.text)
        sink.write(points(1000, 2000))
        wait_until(lambda: "up to 16 MiB wait in memory" in caplog.text)
        # What was being sent may be taken; nothing else is.
        assert set(server.accepted) <= set(range(BATCH))
    sink.flush(DEADLINE_S)

    assert server.accepted == list(range(3000))
    assert (sink.written, sink.dropped, sink.waiting) == (3000, 0, 0)
    assert len([record for record in caplog.records if "Input/output error" in record.message]) == 2
    sink.close()


def test_a_bug_in_the_spool_ends_neither_thread(server, caplog):
    errors = [ZeroDivisionError("one"), OSError(5, "two")]

    class Buggy(Spool):
        def sync(self, last):
            if errors:
                raise errors.pop()

        def head(self):
            if errors:
                raise errors.pop()
            return super().head()

    sink = Delivery(plain(Http(url=server.url)), Buggy(None), Backoff(0.001, 0.002))
    for first in range(0, 3000, 600):
        sink.write(points(600, first))
    sink.flush(DEADLINE_S)

    assert server.accepted == list(range(3000))
    assert "ZeroDivisionError: one (will be tried again)" in caplog.text
    sink.close()


def test_what_a_stopped_collector_could_not_deliver_the_next_one_does(server):
    spec = f"datakit://{server.address}?backoff_s=0.01"
    server.always = 503
    first = open_sink(spec)
    first.write(points(2000))
    wait_until(lambda: server.requests)
    first.close(DEADLINE_S)
    assert (first.written, first.dropped) == (0, 0)

    server.always = 200
    second = open_sink(spec)
    second.write(points(1000, 2000))
    second.flush(DEADLINE_S)
    assert server.accepted == list(range(3000))
    second.close()


def test_kill_9_with_a_full_spool_loses_nothing_of_it(server, spool_home, tmp_path):
    server.always = 500
    first = collector(server.address, 60_000, 21_000)
    assert first.stdout.readline() == "written\n"
    wait_until(lambda: sum(map(int, first.stdout.readline().split())) >= 21_000 - BATCH)
    killed(first)
    spooled = on_disk(spool_home, tmp_path / "copy")
    assert 1000 < len(spooled) < 21_000

    server.always = 200
    second = collector(server.address, 60_000)
    wait_until(lambda: set(spooled) <= set(server.accepted))
    killed(second)
    assert server.accepted == spooled


def test_kills_while_it_is_replayed_send_at_most_the_chunk_on_its_way_twice(server, spool_home, tmp_path):
    server.always = 500
    first = collector(server.address, 1 << 26, 21_000)
    assert first.stdout.readline() == "written\n"
    # What it says waits may wait in memory still, where a kill loses it.
    wait_until(lambda: on_disk(spool_home, tmp_path / "copy") == list(range(21_000)))
    killed(first)

    server.always = 200
    kills = 0
    while len(set(server.accepted)) < 21_000 and kills < 3:
        before = len(server.accepted)
        replaying = collector(server.address, 1 << 26)
        wait_until(lambda before=before: len(server.accepted) > before)
        killed(replaying)
        kills += 1
    last = collector(server.address, 1 << 26)
    wait_until(lambda: set(server.accepted) == set(range(21_000)))
    killed(last)
    assert len(server.accepted) - 21_000 <= kills * BATCH
    assert list(dict.fromkeys(server.accepted)) == list(range(21_000))


def test_the_collectors_thread_only_encodes(no_proxy):
    """A disk that hangs holds up the spool's thread, not the one that collects."""
    hung = threading.Event()

    class HungDisk:
        durable, lost, points, oldest_ns = False, 0, 0, None

        def append(self, chunk):
            hung.wait(DEADLINE_S)

        def sync(self, last):
            pass

        def head(self):
            return None

        def close(self):
            return 0

    sink = Delivery(plain(Http(url="http://127.0.0.1:9")), HungDisk())
    for _ in range(10):
        sink.write(points(600))
    wait_until(lambda: sink.waiting == 6000)
    hung.set()
    sink.close()


def in_time(call):
    """What it gives, if it does so without waiting for a disk."""
    gave = []
    thread = threading.Thread(target=lambda: gave.append(call()), daemon=True)
    thread.start()
    thread.join(DEADLINE_S / 6)
    assert gave, "it waits for the disk"
    return gave[0]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_disk_that_does_not_answer_holds_up_neither_the_collector_nor_its_status(server, monkeypatch, call):
    server.always, hung, entered = 503, threading.Event(), threading.Event()
    sink = open_sink(f"datakit://{server.address}?backoff_s=0.01&longest_backoff_s=0.02")
    original = getattr(os, call)

    def hanging(fd, *rest):
        if threading.current_thread() is sink._threads[0]:
            entered.set()
            hung.wait(DEADLINE_S)
        return original(fd, *rest)

    monkeypatch.setattr(os, call, hanging)
    sink.write(points(600))
    assert entered.wait(DEADLINE_S)
    in_time(lambda: sink.write(points(600, 600)) or True)
    assert in_time(lambda: (sink.waiting, sink.dropped)) == (1200, 0)
    assert in_time(lambda: sink.lag_s) >= 0
    if call == "fdatasync":
        server.always = 200
        wait_until(lambda: server.accepted)
        server.always = 503
    hung.set()
    server.always = 200
    sink.flush(DEADLINE_S)
    assert server.accepted == list(range(1200))
    sink.close()


@pytest.fixture
def hanging(server, monkeypatch):
    """hanging(spec) -> a sink, full of 600 points, whose disk does not answer until `hanging.over` is set."""
    server.always, over, entered, original = 503, threading.Event(), threading.Event(), os.pwrite

    def pwrite(*arguments):
        entered.set()
        over.wait(DEADLINE_S)
        return original(*arguments)

    def begin(spec):
        sink = open_sink(spec)
        monkeypatch.setattr(os, "pwrite", pwrite)
        sink.write(points(600))
        assert entered.wait(DEADLINE_S)
        return sink

    begin.over = over
    yield begin
    over.set()


def test_a_disk_that_does_not_answer_does_not_hold_up_the_end(server, hanging, caplog):
    sink = hanging(f"datakit://{server.address}?backoff_s=0.01&longest_backoff_s=0.02")
    in_time(lambda: sink.close(0.1) or True)
    assert "the disk hangs" in caplog.text


def test_who_comes_after_has_what_a_disk_held_that_answers_late(server, hanging):
    spec = f"datakit://{server.address}?backoff_s=0.01&longest_backoff_s=0.02"
    first = hanging(spec)
    first.close(0.1)
    # 512 are the disk's, whatever becomes of them; the rest was given up.
    assert (first.dropped, first.waiting) == (88, 512)
    hanging.over.set()
    server.always, number = 200, 600
    second = open_sink(spec)
    while 511 not in server.accepted or second.waiting:
        second.write(points(1, number))
        second.flush(0.1)
        number += 1
    second.close(DEADLINE_S)

    assert {*server.accepted} == {*range(512), *range(600, number)}
    assert second.written >= number - 600 and second.dropped == 0
    wait_until(lambda: (first.dropped, first.waiting) == (88, 0))


def test_what_the_disk_is_just_taking_does_not_give_way_to_what_comes(server, hanging, monkeypatch):
    sink = hanging(f"datakit://{server.address}?backoff_s=0.01&longest_backoff_s=0.02")
    monkeypatch.setattr("collector.sinks.delivery._INTAKE_BYTES", 1)
    for first in range(600, 3000, 600):
        sink.write(points(600, first))
    assert (sink.dropped, sink.waiting) == (3000 - 512 - 88, 600)
    hanging.over.set()
    server.always = 200
    sink.flush(DEADLINE_S)
    sink.close(DEADLINE_S)

    assert server.accepted == [*range(512), *range(2912, 3000)]
    assert (sink.written, sink.dropped) == (600, 2400)


def test_what_comes_when_all_is_closed_is_lost_and_counted():
    spool = Spool(None)
    spool.close()
    spool.append(Chunk("", 10, b"x"))
    assert (spool.points, spool.lost) == (0, 10)
