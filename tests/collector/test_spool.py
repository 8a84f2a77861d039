"""What waits for a server: in order, bounded, whole after a crash at any byte, and honest about what it lost."""

import errno
import os
import shutil
import subprocess
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.sinks.chunk import Chunk, Retry
from collector.sinks.segment import sync
from collector.sinks.segments import Segments
from collector.sinks.spool import Spool
from collector.sinks.trouble import Patience
from tests.collector.line_server import unreadable

ROOM = 1 << 20


def chunk(number, size=100):
    return Chunk("/write", 10, b"%06d" % number + bytes(size - 6))


def drained(queue):
    """The numbers of all that is in it, taken out as a sender does."""
    numbers = []
    while (head := queue.head()) is not None:
        numbers.append(int(head.payload[:6]))
        queue.done(head.key if isinstance(queue, Segments) else head)
    return numbers


def test_a_power_cut_takes_no_file_that_is_full_and_no_name(tmp_path, monkeypatch):
    """What the kernel is asked to keep, in order: by the names of what it is asked for."""
    synced = []

    def recording(original):
        def call(fd):
            synced.append(Path(f"/proc/self/fd/{fd}").readlink())
            return original(fd)
        return call

    monkeypatch.setattr(os, "fdatasync", recording(os.fdatasync))
    monkeypatch.setattr(os, "fsync", recording(os.fsync))
    spool = Spool(partial(Segments, tmp_path / "one", 16 * 1000))
    for number in range(20):
        spool.append(chunk(number))
        spool.sync(last=False)
    files = sorted((tmp_path / "one").glob("*.chunks"))
    assert len(files) == 3
    # Each file's name at its beginning, its bytes at its end; the directory's own name once.
    assert synced.count(tmp_path / "one") == 3 and synced.count(tmp_path) == 1
    assert [path for path in synced if path in files] == files[:-1]
    spool.sync(last=True)
    assert synced[-1] == files[-1]
    before = len([*Path("/proc/self/fd").iterdir()])
    spool.sync(last=True)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    spool.close()


@pytest.mark.parametrize("failing", ["dup", "fdatasync", "close"])
def test_what_cannot_be_synced_costs_nothing_else_that_is_to_be(failing, tmp_path, monkeypatch, caplog):
    synced, original = [], getattr(os, failing)
    spool = Spool(partial(Segments, tmp_path / "one", 16 * 1000))
    for number in range(20):
        spool.append(chunk(number))
    before = len([*Path("/proc/self/fd").iterdir()])

    def fails_once(fd):
        monkeypatch.setattr(os, failing, original)
        if failing == "close":
            original(fd)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("collector.sinks.spool.sync", lambda fd, original=sync: (
            synced.append(Path(f"/proc/self/fd/{fd}").readlink()), original(fd)))
        monkeypatch.setattr(os, failing, fails_once)
        spool.sync(last=False)
        spool.sync(last=False)
    assert {*synced} == {*sorted((tmp_path / "one").glob("*.chunks"))[:-1], tmp_path / "one", tmp_path}
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert ("Input/output error" in caplog.text) == (failing != "close")
    spool.close()


def test_what_was_put_comes_back_after_a_restart_in_order(tmp_path):
    first = Segments(tmp_path, ROOM)
    given = [chunk(number) for number in range(50)]
    for one in given:
        first.put(one)
    first.close()

    again = Segments(tmp_path, ROOM)
    assert again.points == 500
    assert again.head() == given[0]
    assert drained(again) == list(range(50))
    assert (again.points, again.size, again.lost) == (0, 0, 0)


def test_reading_goes_on_where_it_was(tmp_path):
    first = Segments(tmp_path, ROOM)
    for number in range(10):
        first.put(chunk(number))
    for _ in range(4):
        first.done(first.head().key)
    first.head()  # on its way when the process dies
    first.close()

    again = Segments(tmp_path, ROOM)
    again.put(chunk(10))
    assert drained(again) == [*range(4, 11)]
    assert [path.name for path in tmp_path.glob("*.chunks")] == []


def test_the_oldest_give_way_and_are_counted(tmp_path):
    queue = Segments(tmp_path, 20_000)
    for number in range(1000):
        queue.put(chunk(number))
        assert sum(path.stat().st_size for path in tmp_path.glob("*.chunks")) <= 20_000

    kept = drained(queue)
    assert kept == [*range(kept[0], 1000)]
    assert queue.lost == 10 * (1000 - len(kept))
    assert len(kept) > 100


def test_what_is_on_its_way_when_it_gives_way_is_not_counted_as_lost(tmp_path):
    queue = Segments(tmp_path, 20_000)
    queue.put(chunk(0))
    queue.in_flight = queue.head().key
    for number in range(1, 1000):
        queue.put(chunk(number))

    assert not queue.done(queue.in_flight)
    assert queue.lost == 10 * (999 - len(drained(queue)))


@pytest.fixture
def at_its_bound(tmp_path):
    """142 chunks of 140 bytes in 16 files, the last of which takes more; one more and the oldest file gives way."""
    queue = Segments(tmp_path, 20_000)
    for number in range(142):
        queue.put(chunk(number))
    assert (queue.lost, len([*tmp_path.glob("*.chunks")])) == (0, 16)
    return queue


def test_what_a_failing_disk_does_not_take_costs_nothing_that_is_on_it(at_its_bound, tmp_path):
    with unreadable(tmp_path):
        for number in range(5):
            with pytest.raises(OSError, match="Input/output error"):
                at_its_bound.put(chunk(number))
    assert (at_its_bound.lost, drained(at_its_bound)) == (0, [*range(142)])


def test_on_a_full_disk_what_gives_way_makes_room(at_its_bound, tmp_path, monkeypatch):
    original = os.pwrite

    def full(*arguments):
        if len([*tmp_path.glob("*.chunks")]) > 15:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    at_its_bound.put(chunk(142))
    assert (at_its_bound.lost, drained(at_its_bound)) == (90, [*range(9, 143)])


def test_a_chunk_that_fits_alone_has_a_file_of_its_own(tmp_path):
    queue = Segments(tmp_path, 4096)
    queue.put(chunk(0))
    queue.put(chunk(1, 4000))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.chunks")) <= 4096
    assert (queue.lost, drained(queue)) == (10, [1])


def test_a_file_that_cannot_be_begun_leaves_one_full_one_to_sync(tmp_path, monkeypatch):
    queue = Segments(tmp_path, 16 * 1000)
    for number in range(8):
        queue.put(chunk(number))
    original = os.open

    def failing(path, *rest, **more):
        if str(path).endswith(".chunks"):
            raise OSError(errno.EROFS, "Read-only file system")
        return original(path, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        for number in range(5):
            with pytest.raises(OSError, match="Read-only"):
                queue.put(chunk(number))
    queue.put(chunk(8))
    fds = [*queue.unsynced(last=False)]
    assert [Path(f"/proc/self/fd/{fd}").readlink().name for fd in fds].count("0000000000000001.chunks") == 1
    for fd in fds:
        os.close(fd)


@contextmanager
def read_only(point):
    """What was open before stays writable, as on a disk that the kernel has just remounted."""
    subprocess.run(["mount", "--bind", "-o", "ro", point, point], check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", point], check=True, timeout=20)


def test_a_file_that_cannot_be_deleted_is_neither_sent_twice_nor_kept_for_ever(mounted):
    disk = mounted("-t", "tmpfs", "-o", "size=1m", "none")
    queue = Segments(disk / "spool", 20_000)
    for number in range(50):
        queue.put(chunk(number))
    with read_only(disk):
        assert [queue.head().payload[:6], queue.done(queue.head().key)] == [b"000000", True]
        queue.drop_oldest()
        left = drained(queue)
    assert left and left == [*range(left[0], 50)]
    assert len([*(disk / "spool").glob("*.chunks")]) > 3
    queue.close()

    again = Segments(disk / "spool", 20_000)
    assert (again.points, again.head()) == (0, None)
    assert [*(disk / "spool").glob("*.chunks")] == []
    again.close()


def test_what_could_not_be_deleted_is_when_the_next_is(mounted):
    disk = mounted("-t", "tmpfs", "-o", "size=1m", "none")
    queue = Segments(disk / "spool", ROOM)
    queue.put(chunk(0))
    with read_only(disk):
        assert drained(queue) == [0]
    queue.put(chunk(1))
    assert drained(queue) == [1]
    assert [*(disk / "spool").glob("*.chunks")] == []
    queue.close()


@pytest.mark.parametrize("then", ["put", "close"])
def test_a_cursor_that_could_not_be_written_is_when_the_disk_heals(then, tmp_path):
    queue = Segments(tmp_path, ROOM)
    for number in range(5):
        queue.put(chunk(number))
    with unreadable(tmp_path, "cursor"):
        for _ in range(3):
            assert queue.done(queue.head().key)
    if then == "put":
        queue.put(chunk(5))
        shutil.copytree(tmp_path, again := tmp_path / "after kill -9")
    else:
        queue.close()
        again = tmp_path
    assert drained(Segments(again, ROOM)) == [3, 4, 5][:3 if then == "put" else 2]


def test_a_disk_that_cannot_be_read_or_written_loses_nothing_and_goes_on_when_it_heals(tmp_path, caplog):
    spool = Spool(partial(Segments, tmp_path, ROOM), 1000)
    for number in range(5):
        spool.append(chunk(number))
    with unreadable(tmp_path):
        for number in range(5, 20):
            spool.append(chunk(number))
        with pytest.raises(Retry, match=r"Input/output error: .*\.chunks"):
            spool.head()
    # Memory holds ten; those on the disk did not have to give way for that.
    assert (spool.points, spool.lost) == (150, 50)
    (told,) = [record.message for record in caplog.records]
    assert "Input/output error" in told and ".chunks" in told

    assert drained(spool) == [*range(5), *range(10, 20)]
    assert spool.close() == 0


def test_what_cannot_be_read_for_long_holds_up_nothing_any_more(tmp_path, monkeypatch, caplog):
    queue = Segments(tmp_path, ROOM)
    for number in range(3):
        queue.put(chunk(number))
    with unreadable(tmp_path):
        with pytest.raises(OSError):
            queue.head()
        monkeypatch.setattr("collector.sinks.segments._UNREADABLE_S", 0)
        assert queue.head() is None
    assert (queue.points, queue.lost) == (0, 30)
    assert "Input/output error at byte 0: 10 points are lost" in caplog.text


def bad_sector(monkeypatch, name, at):
    """Nothing can be read there, in the file of that name."""
    original = os.pread

    def pread(fd, size, offset):
        if offset == at and Path(f"/proc/self/fd/{fd}").readlink().name == name:
            raise OSError(errno.EIO, "Input/output error")
        return original(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)


@pytest.fixture
def left(at_its_bound):
    """What a collector left that had delivered the first two of 142 chunks, nine of which are in a file."""
    for _ in range(2):
        at_its_bound.done(at_its_bound.head().key)
    at_its_bound.close()


def test_a_bad_sector_shuts_a_spool_for_a_while_and_costs_what_stands_behind_it_in_that_file(
        left, tmp_path, monkeypatch, caplog):
    clock = [1000.0]
    monkeypatch.setattr("collector.sinks.trouble.time.monotonic", lambda: clock[0])
    file = f"{2:016d}.chunks"
    bad_sector(monkeypatch, file, 4 * 140)
    spool = Spool(partial(Segments, tmp_path, ROOM))
    for clock[0] in (1300.0, 1599.0):
        spool.append(chunk(200))
        assert not spool.durable
    (told,) = [record.message for record in caplog.records]
    assert told.startswith(f"spool: Input/output error: {tmp_path}/{file}; ")
    clock[0] = 1601.0
    spool.append(chunk(200))
    assert spool.durable and spool.points == 10 * (142 - 2 - 5 + 3)
    assert f"{file}: Input/output error at byte 560: what the last 700 bytes held is lost" in caplog.text

    assert drained(spool) == [*range(2, 13), *range(18, 142), 200, 200, 200]
    assert (spool.lost, [*tmp_path.glob("*.chunks")]) == (0, [])


def test_a_cursor_that_cannot_be_read_sends_twice_rather_than_never(left, tmp_path, monkeypatch, caplog):
    bad_sector(monkeypatch, "cursor", 0)
    with pytest.raises(OSError, match="/cursor"):
        Segments(tmp_path, ROOM)
    monkeypatch.setattr("collector.sinks.segments._UNREADABLE_S", 0)
    assert drained(Segments(tmp_path, ROOM)) == [*range(142)]
    assert "cursor: Input/output error: of the oldest file some may be sent twice" in caplog.text


def test_a_spool_that_could_be_opened_again_is_waited_for_as_long_the_next_time(left, tmp_path, monkeypatch):
    clock, patience = [1000.0], Patience()
    monkeypatch.setattr("collector.sinks.trouble.time.monotonic", lambda: clock[0])
    with monkeypatch.context() as patched:
        bad_sector(patched, f"{2:016d}.chunks", 0)
        with pytest.raises(OSError, match="chunks"):
            Segments(tmp_path, ROOM, patience)
    clock[0] = 1500.0
    queue = Segments(tmp_path, ROOM, patience)
    clock[0] = 2000.0
    with unreadable(tmp_path), pytest.raises(OSError, match="chunks"):
        queue.head()
    assert drained(queue) == [*range(2, 142)]


@settings(max_examples=50)
@given(cut=st.integers(0, 3 * 140), more=st.integers(0, 3))
def test_a_write_cut_short_at_any_byte_costs_nothing_but_itself(tmp_path_factory, cut, more):
    directory = tmp_path_factory.mktemp("spool")
    queue = Segments(directory, ROOM)
    for number in range(3):
        queue.put(chunk(number))
    (path,) = directory.glob("*.chunks")
    size = path.stat().st_size // 3
    queue.close()
    with path.open("r+b") as file:
        file.truncate(min(cut, 3 * size))

    again = Segments(directory, ROOM)
    for number in range(10, 10 + more):
        again.put(chunk(number))
    assert drained(again) == [*range(min(cut, 3 * size) // size), *range(10, 10 + more)]
    again.close()
    shutil.rmtree(directory)


@settings(max_examples=50)
@given(at=st.integers(0, 2 * 134), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_sent(tmp_path_factory, at, bit):
    directory = tmp_path_factory.mktemp("spool")
    queue = Segments(directory, ROOM)
    sent = [chunk(0), chunk(1)]
    for one in sent:
        queue.put(one)
    queue.close()
    (path,) = directory.glob("*.chunks")
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)

    again = Segments(directory, ROOM)
    while (head := again.head()) is not None:
        assert head in sent
        again.done(head.key)
    again.close()
    shutil.rmtree(directory)


@pytest.mark.parametrize("cursor", [b"", b"nonsense", bytes(20), b"\xff" * 20, b"x" * 5000])
def test_a_damaged_cursor_sends_twice_rather_than_never(tmp_path, cursor):
    queue = Segments(tmp_path, ROOM)
    for number in range(5):
        queue.put(chunk(number))
    queue.done(queue.head().key)
    queue.close()
    (tmp_path / "cursor").write_bytes(cursor)

    assert drained(Segments(tmp_path, ROOM)) == [0, 1, 2, 3, 4]


def test_a_full_disk_waits_in_memory_and_nothing_is_lost_or_out_of_order(mounted, caplog):
    disk = mounted("-t", "tmpfs", "-o", "size=256k", "none")
    spool = Spool(partial(Segments, disk / "spool", 64 << 20), 1 << 20)
    for number in range(100):
        spool.append(chunk(number, 8000))
    assert (spool.points, spool.lost) == (1000, 0)
    assert not spool.durable
    assert len([record for record in caplog.records if "No space left on device" in record.message]) == 1

    assert drained(spool) == list(range(100))
    spool.append(chunk(100, 8000))
    assert spool.durable
    spool.close()


def test_past_a_full_disk_and_full_memory_the_oldest_are_lost_and_counted(mounted):
    disk = mounted("-t", "tmpfs", "-o", "size=256k", "none")
    spool = Spool(partial(Segments, disk / "spool", 64 << 20), 100_000)
    for number in range(200):
        spool.append(chunk(number, 8000))

    assert spool.points + spool.lost == 2000
    kept = drained(spool)
    assert kept == [*range(kept[0], 200)]
    assert len(kept) > 15


def test_a_spool_in_use_is_left_alone_and_taken_over_when_it_is_free(tmp_path, caplog):
    first = Spool(partial(Segments, tmp_path, ROOM))
    first.append(chunk(0))
    second = Spool(partial(Segments, tmp_path, ROOM))
    second.append(chunk(1))
    assert "another sink or process uses it" in caplog.text
    first.close()

    second.append(chunk(2))
    assert drained(second) == [0, 1, 2]
    assert second.close() == 0


@pytest.mark.parametrize("taken", [True, False])
def test_what_is_sent_from_memory_when_a_disk_with_others_opens_is_neither_sent_twice_nor_called_lost(tmp_path, taken):
    first = Spool(partial(Segments, tmp_path, ROOM))
    for number in range(3):
        first.append(chunk(number))
    second = Spool(partial(Segments, tmp_path, ROOM))
    second.append(chunk(10))
    sending = second.head()
    first.close()
    second.append(chunk(11))
    assert second.points == 50
    if taken:
        second.done(sending)

    assert drained(second) == [0, 1, 2, *([] if taken else [10]), 11]
    assert (second.points, second.lost, second.oldest_ns, second.close()) == (0, 0, None, 0)


def test_what_is_done_before_its_turn_is_no_part_of_the_queue_any_more(tmp_path):
    queue = Segments(tmp_path, 20_000)
    given = [chunk(number) for number in range(20)]
    for one in given:
        queue.put(one)
    for number in (3, 19, 0, 1, 9):
        assert queue.done(given[number].key) and not queue.done(given[number].key)
    assert (queue.points, queue.oldest_ns) == (150, given[2].time_ns)
    queue.drop_oldest()
    assert queue.lost == 60
    assert drained(queue) == [*range(10, 19)]
    assert (queue.points, queue.size, queue.oldest_ns) == (0, 0, None)


def test_what_is_on_its_way_and_cannot_be_read_again_is_lost_once(tmp_path, caplog):
    spool = Spool(partial(Segments, tmp_path, ROOM))
    for number in range(3):
        spool.append(chunk(number))
    spool.head()
    (path,) = tmp_path.glob("*.chunks")
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"damaged")
    assert drained(spool) == [1, 2]
    assert (spool.points, spool.lost) == (0, 10)
    assert "damaged at byte 0: 10 points are lost" in caplog.text


def test_in_memory_alone_the_bound_holds_and_closing_loses_what_is_left():
    spool = Spool(None, 1000)
    for number in range(25):
        spool.append(chunk(number))
    assert (spool.points, spool.lost) == (100, 150)
    assert int(spool.head().payload[:6]) == 15

    assert spool.close() == 0
    assert spool.lost == 250


@settings(max_examples=50)
@given(st.lists(st.one_of(st.just("take"), st.just("restart"), st.integers(6, 3000)), max_size=60))
def test_it_is_a_queue_whatever_is_done_with_it(tmp_path_factory, steps):
    directory = tmp_path_factory.mktemp("spool")
    queue, model, number = Segments(directory, 10_000), [], 0
    lost = 0
    for step in steps:
        if step == "take":
            head = queue.head()
            if head is not None:
                queue.done(head.key)
            taken = None if head is None else int(head.payload[:6])
            lost_now = 0 if taken is None else model.index(taken)
            lost, model = lost + lost_now, model[lost_now + (taken is not None):]
        elif step == "restart":
            before = queue.lost
            queue.close()
            queue = Segments(directory, 10_000)
            queue.lost = before
        else:
            queue.put(chunk(number, step))
            model.append(number)
            number += 1
    rest = drained(queue)
    assert rest == model[len(model) - len(rest):]
    assert queue.lost == 10 * (lost + len(model) - len(rest))
    queue.close()
    shutil.rmtree(directory)
