"""Files that are rotated: by size, by age, with so many kept; whole lines, none lost, none twice."""

import pytest

from collector.sinks import open_sink
from kcompat.errors import KcompatError
from tests.collector.line_server import points


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


def test_a_file_moved_away_by_logrotate_is_begun_anew(tmp_path):
    sink = open_sink(f"lineproto:{tmp_path}/flows?max_bytes=100000")
    sink.write(points(2))
    (tmp_path / "flows").rename(tmp_path / "elsewhere")
    sink.write(points(3, 2))
    sink.close()

    assert len((tmp_path / "elsewhere").read_text().splitlines()) == 2
    assert len((tmp_path / "flows").read_text().splitlines()) == 3


def test_an_earlier_collectors_file_is_continued(tmp_path):
    for first in (0, 5):
        written(open_sink(f"lineproto:{tmp_path}/flows?max_bytes=100000"), (first, 5))

    assert len((tmp_path / "flows").read_text().splitlines()) == 10


def test_a_path_may_have_a_question_mark(tmp_path):
    written(open_sink(f"jsonl:{tmp_path}/what?"), (0, 1))

    assert (tmp_path / "what?").read_text().count("\n") == 1


@pytest.mark.parametrize(("spec", "message"), [
    ("jsonl:/nonexistent/x?max_bytes=5", "/nonexistent/x: cannot be opened"), ("jsonl:x?keep=none", "keep"),
    ({"kind": "jsonl", "pth": "x"}, "no key pth"),
])
def test_what_is_wrong_is_named(spec, message):
    with pytest.raises(KcompatError, match=message):
        open_sink(spec)
