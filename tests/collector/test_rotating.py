"""Files that are rotated: by size, by age, with so many kept; whole lines, none lost, none twice."""

import errno
import os
import shutil
import subprocess
import sys
from io import FileIO
from pathlib import Path

import pytest

from collector.record import to_lines
from collector.sinks import open_sink
from collector.sinks.files import FileStream
from collector.sinks.lines import LineSink
from collector.sinks.rotating import RotatingStream
from kcompat.errors import KcompatError
from tests.collector.line_server import points

REPO = Path(__file__).parents[2]


def lines(directory):
    """Of all files, the oldest first."""
    files = sorted(directory.iterdir(), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0)
    return [line for path in files for line in path.read_text().splitlines()]


def written(sink, *batches):
    for first, count in batches:
        sink.write(points(count, first))
    sink.close()


def test_by_size_every_line_is_whole_and_in_one_file(tmp_path):
    written(open_sink(f"lineproto:{tmp_path}/flows?max_bytes=1000&keep=100"),
            *((first, 10) for first in range(0, 500, 10)))

    assert lines(tmp_path) == [f"netflow,host=box n={number}i {number + 1}" for number in range(500)]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert len([*tmp_path.iterdir()]) > 10


def test_only_so_many_are_kept(tmp_path):
    written(open_sink({"kind": "jsonl", "path": f"{tmp_path}/flows", "max_bytes": 100, "keep": 3}),
            *((first, 1) for first in range(50)))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["flows", "flows.1", "flows.2", "flows.3"]
    assert '"n":49' in lines(tmp_path)[-1]


def test_by_age(tmp_path, monkeypatch):
    sink = open_sink(f"lineproto:{tmp_path}/flows?max_age_s=1h")
    sink.write(points(3))
    now = (tmp_path / "flows").stat().st_mtime
    monkeypatch.setattr("collector.sinks.rotating.time.time", lambda: now + 3700)
    sink.write(points(4, 3))
    sink.write(points(2, 7))
    sink.close()

    assert len((tmp_path / "flows.1").read_text().splitlines()) == 3
    assert len((tmp_path / "flows").read_text().splitlines()) == 6


def test_a_batch_larger_than_the_bound_gets_a_file_of_its_own(tmp_path):
    written(open_sink(f"lineproto:{tmp_path}/flows?max_bytes=100"), (0, 1), (1, 50), (51, 1))

    assert [len((tmp_path / name).read_text().splitlines()) for name in ("flows.2", "flows.1", "flows")] == [1, 50, 1]


@pytest.mark.parametrize("limit", ["", "?max_bytes=100000"])
def test_a_file_moved_away_by_logrotate_is_begun_anew(limit, tmp_path):
    sink = open_sink(f"lineproto:{tmp_path}/flows{limit}")
    sink.write(points(2))
    (tmp_path / "flows").rename(tmp_path / "elsewhere")
    sink.write(points(3, 2))
    (tmp_path / "flows").unlink()
    sink.write(points(4, 5))
    sink.close()

    assert len((tmp_path / "elsewhere").read_text().splitlines()) == 2
    assert len((tmp_path / "flows").read_text().splitlines()) == 4


class FullDisk(FileIO):
    """Takes so many bytes more."""

    room = 50

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = super().write(data[:self.room])
        self.room -= done
        return done


@pytest.mark.parametrize("made", [FileStream, lambda *of: RotatingStream(*of, 1000, 0, 5)])
@pytest.mark.parametrize("how", ["deleted", "deleted at once", "moved"])
def test_a_deleted_file_does_not_keep_a_full_disk_full_for_half_a_line(tmp_path, how, made):
    path = tmp_path / "flows"

    class Disk(FullDisk):
        def write(self, data):
            done = super().write(data)
            if not self.room and how == "deleted at once":
                path.unlink()
            return done

    with path.open("ab") as other:
        file = Disk(os.dup(other.fileno()), "ab")
    sink = LineSink("flows", made(path, file), to_lines)
    sink.write(points(3))
    whole = len("netflow,host=box n=0i 1\n")
    assert 50 // whole == 2
    if how == "deleted":
        path.unlink()
    elif how == "moved":
        path.rename(tmp_path / "elsewhere")
    sink.write(points(3, 3))
    sink.write(points(3, 6))
    assert sink.written + sink.dropped == 9
    if how == "moved":
        assert (sink.written, path.exists()) == (2, False)
        file.room = 10_000
        sink.write(points(2, 9))
        sink.write(points(1, 11))
        last = [*(tmp_path / "elsewhere").read_text().splitlines()[-2:], path.read_text()]
        assert [line.split()[1] for line in last] == ["n=9i", "n=10i", "n=11i"]
    else:
        assert file.closed
        assert path.read_text() == "".join(f"netflow,host=box n={n}i {n + 1}\n" for n in range(3, 9))
    sink.close()


@pytest.mark.parametrize("limit", ["", "?max_bytes=100000"])
def test_a_file_that_fails_when_it_is_closed_is_turned_from_all_the_same(limit, tmp_path, caplog):
    sink = open_sink(f"lineproto:{tmp_path}/flows{limit}")
    before = len([*Path("/proc/self/fd").iterdir()])
    sink.write(points(2))

    class Failing(FileIO):
        def close(self):
            super().close()
            raise OSError(errno.EIO, "Input/output error")

    sink._stream._file = Failing(os.dup(sink._stream._file.fileno()), "ab")
    (tmp_path / "flows").rename(tmp_path / "elsewhere")
    sink.write(points(3, 2))
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    sink.close()

    assert (sink.written, sink.dropped) == (5, 0)
    assert len((tmp_path / "flows").read_text().splitlines()) == 3
    assert f"{tmp_path}/flows: Input/output error: what was written last may be lost" in caplog.text


@pytest.mark.parametrize("how", ["create 640", "nocreate", "copytruncate"])
def test_logrotate_itself_loses_no_line(how, tmp_path):
    if not (logrotate := shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")):
        pytest.skip("logrotate is not installed")
    (tmp_path / "logs").mkdir()
    (tmp_path / "conf").write_text(f"{tmp_path}/logs/flows {{\nrotate 9\n{how}\n}}\n")
    (tmp_path / "conf").chmod(0o600)
    sink = open_sink(f"lineproto:{tmp_path}/logs/flows")
    for first in range(0, 30, 10):
        sink.write(points(10, first))
        subprocess.run([logrotate, "-f", "-s", tmp_path / "state", tmp_path / "conf"], check=True, timeout=20)
    sink.write(points(5, 30))
    sink.close()

    assert lines(tmp_path / "logs") == [f"netflow,host=box n={number}i {number + 1}" for number in range(35)]
    assert sorted(path.read_text().count("\n") for path in (tmp_path / "logs").iterdir()) == [5, 10, 10, 10]


def test_nobody_else_may_read_a_new_file(tmp_path):
    (tmp_path / "flows").touch(0o644)
    for spec in ("flows", "new", "rotated?max_bytes=10"):
        written(open_sink(f"jsonl:{tmp_path}/{spec}"), (0, 1), (1, 1))

    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    assert modes == {"flows": "0o644", "new": "0o600", "rotated": "0o600", "rotated.1": "0o600"}


def test_what_is_no_file_is_written_to_as_it_is(tmp_path, caplog):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    sink = open_sink(f"lineproto:{tmp_path}/pipe?max_bytes=10")
    (tmp_path / "pipe").rename(tmp_path / "elsewhere")
    written(sink, (0, 1), (1, 2))
    assert os.read(reader, 1000).count(b"\n") == 3
    os.close(reader)
    assert not (tmp_path / "pipe").exists()

    full = open_sink("jsonl:/dev/full")
    written(full, (0, 3))
    assert (full.written, full.dropped) == (0, 3)
    assert "/dev/full: No space left on device" in caplog.text


def test_standard_output_by_its_path_is_one_file_however_it_is_moved(tmp_path):
    program = ("import sys; sys.path.insert(0, '.')\nfrom pathlib import Path\n"
               "from collector.sinks import open_sink\nfrom tests.collector.line_server import points\n"
               "sink = open_sink('lineproto:/dev/stdout')\nsink.write(points(2))\n"
               f"Path('{tmp_path}/out').rename('{tmp_path}/moved')\nsink.write(points(3))\n")
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], cwd=REPO, stdout=out, check=True, timeout=60)

    assert len((tmp_path / "moved").read_text().splitlines()) == 5
    assert not (tmp_path / "out").exists()


def test_an_earlier_collectors_file_is_continued(tmp_path):
    for first in (0, 5):
        written(open_sink(f"lineproto:{tmp_path}/flows?max_bytes=100000"), (first, 5))

    assert len((tmp_path / "flows").read_text().splitlines()) == 10


def test_a_path_may_have_a_question_mark(tmp_path):
    written(open_sink(f"jsonl:{tmp_path}/what?"), (0, 1))

    assert (tmp_path / "what?").read_text().count("\n") == 1


@pytest.mark.parametrize(("spec", "message"), [
    ("jsonl:/nonexistent/x?max_bytes=5", "/nonexistent/x: cannot be opened"), ("jsonl:x?keep=none", "keep"),
    ({"kind": "jsonl", "pth": "x"}, "no key pth"), ("jsonl:/dev/stdout?max_bytes=5", "/dev/stdout: .*not rotated"),
])
def test_what_is_wrong_is_named(spec, message):
    with pytest.raises(KcompatError, match=message):
        open_sink(spec)
