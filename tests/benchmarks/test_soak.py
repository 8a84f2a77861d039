"""What a soak counts against what it reads back: no difference is overlooked, no step of memory is taken for a leak."""

import json
import threading
import time
from collections import Counter

import pytest

from benchmarks.soak import Trouble
from benchmarks.soak_books import TLS_PORT, Books, Sample, Written, differences, slope_mb_per_hour
from benchmarks.soak_trouble import FailingSink, replace
from benchmarks.soak_watch import until
from kcompat.errors import KcompatError


def record(measurement, fields, **tags):
    return json.dumps({"measurement": measurement, "tags": tags, "fields": fields, "time": 7})


def flow(direction="outgoing", port="8080", **fields):
    ends = {"src_ip": "10.216.0.1", "dst_port": port} if direction == "outgoing" else \
        {"src_ip": "10.216.0.2", "src_port": port}
    return record("netflow", fields, direction=direction, **ends)


def read(*lines):
    written = Written()
    written.read(lines)
    return written


def test_totals_are_of_the_load_alone():
    written = read(flow(bytes_read=3, tcp_closed=1), flow(bytes_read=4),
                   record("netflow", {"bytes_read": 99}, src_ip="10.0.0.1", direction="outgoing", dst_port="8080"),
                   record("httpflow", {"method": "GET", "path": "/a", "status_code": 200, "count": 5},
                          src_ip="10.216.0.1", direction="outgoing"),
                   record("dnsflow", {"rcode": -1, "count": 2}, src_ip="10.216.0.1", direction="incoming",
                          transport="udp"),
                   record("bash", {"cmd": ": soak 1", "user": "root"}), record("bash", {"cmd": "ls", "user": "root"}))

    assert written.records == 7 and len(written.lines) == 7
    assert written.totals == {("netflow", "outgoing", "8080", "bytes_read"): 7,
                              ("netflow", "outgoing", "8080", "tcp_closed"): 1,
                              ("httpflow", "outgoing", "GET", "/a", "200"): 5,
                              ("dnsflow", "incoming", "udp", "-1"): 2, ("bash", "root"): 1}


def test_every_difference_is_told_and_of_tls_what_one_end_has_and_the_other_has_not():
    done = Counter({("netflow", "outgoing", "8080", "bytes_read"): 7})
    assert not differences(done, Counter(done))
    assert differences(done, Counter()) == ["netflow outgoing 8080 bytes_read: 0 instead of 7"]
    seen = read(flow(port=str(TLS_PORT), bytes_written=5), flow("incoming", str(TLS_PORT), bytes_read=4)).totals
    assert differences(Counter(), seen) == ["TLS: 5 bytes written outgoing, 4 read incoming"]


def test_books_of_several_processes_add_up():
    ours, theirs = Books(), Books()
    for books in (ours, theirs):
        books.add("bash", "root", count=2)
    ours.take_in(theirs.told())
    assert ours.totals() == {("bash", "root"): 4}


@pytest.mark.parametrize(("grown_mb", "slope"), [(lambda minute: 0, 0), (lambda minute: minute / 30, 2),
                                                 (lambda minute: 5 * (minute > 50), 0)])
def test_the_slope_is_what_grows_all_the_time(grown_mb, slope):
    samples = [Sample(second, 50 + grown_mb(second // 60), 30, 9, 9) for second in range(0, 7200, 2)]
    assert slope_mb_per_hour(samples) == pytest.approx(slope)


def test_a_sink_that_fails_takes_nothing_and_knows_what_it_took_twice():
    sink = FailingSink()
    try:
        assert sink.take("a\nb") == 204
        sink.turn(1)
        assert sink.take("c") == 503
        sink.turn(5)
        sink.be("takes")
        assert sink.take("b\nc") == 204
    finally:
        sink.close()
    assert sink.failures == sink.again == 1 and sink.taken == set(map(hash, "abc"))


def test_an_upgrade_is_another_file_by_the_same_name(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "there" / "bash"
    original.write_text("program")
    replace(original, copy)
    with copy.open() as old:
        replace(original, copy)
        assert copy.stat().st_ino != copy.parent.stat().st_ino and old.read() == "program"
        assert list(copy.parent.iterdir()) == [copy]


def test_who_waits_in_vain_says_for_what():
    assert until(lambda: 7, "seven") == 7
    with pytest.raises(KcompatError, match="for Godot"):
        until(lambda: False, "Godot", 0)


def test_a_trouble_that_is_always_at_work_can_be_paused():
    begun, may_end, paused_after = [], threading.Event(), []

    def work(number):
        begun.append(number)
        may_end.wait(5)
        time.sleep(0.01)

    def pause():
        with trouble.paused():
            paused_after.append(len(begun))

    trouble, pausing = Trouble("always", 0, work), threading.Thread(target=pause)
    pausing.start()
    time.sleep(0.5)
    may_end.set()
    pausing.join()
    trouble.end()
    assert paused_after == [1]
