"""Files that lie, climb, explode or end: one line each, memory and disk bounded, nothing left behind."""

import gzip
import lzma
import os
import resource
import tempfile

import pytest

from offset_db import harvest_file
from offset_db.harvest_file import read
from offset_db.harvest_unpack import limit_of
from tests.offset_db.harvest_samples import btf, bzimage, cpio, rpm, tar, vmlinux
from tests.offset_db.test_harvest_files import written


def fault(path):
    """The one line that says what is wrong."""
    report = read(path)
    assert not report.found and len(report.faults) == 1, report
    assert report.faults[0].isprintable()
    return report.faults[0]


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """Where temporary files go: a directory of this test's own, to be found empty."""
    directory = tmp_path / "spool"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_an_empty_file(tmp_path):
    assert fault(written(tmp_path, b"")) == "empty"


def test_a_file_that_vanished(tmp_path):
    assert "No such file" in fault(tmp_path / "gone")


@pytest.mark.parametrize("kept", [5, 40, 200, 0.5, 0.99])
def test_a_kernel_cut_short(tmp_path, kept):
    data = vmlinux()
    size = kept if isinstance(kept, int) else int(len(data) * kept)

    assert fault(written(tmp_path, data[:size]))


@pytest.mark.parametrize("whole", [tar({"k.btf": btf() * 50}, "w:xz"), rpm({"vmlinux": vmlinux() + os.urandom(9000)}),
                                   gzip.compress(vmlinux() + os.urandom(9000))], ids=["tar", "rpm", "gzip"])
def test_a_package_cut_short(tmp_path, whole):
    assert "damaged" in fault(written(tmp_path, whole[:len(whole) // 2]))


@pytest.mark.parametrize("data", [tar({"../../escaped.btf": btf()}, "w:xz"), tar({"a/../../escaped": btf()}),
                                  rpm({"../escaped": btf()})], ids=["tar.xz", "tar", "rpm"])
def test_an_archive_that_climbs_out_is_refused(tmp_path, spool, data):
    assert "leads out of the archive" in fault(written(tmp_path, data))
    assert not list(tmp_path.rglob("escaped*")) and not list(spool.iterdir())


def test_links_in_a_tar_are_not_followed(tmp_path):
    secret = written(tmp_path, vmlinux(), "secret")

    assert "links" in fault(written(tmp_path, tar({"6.1.0.btf": str(secret)}, "w:xz"), "evil.btf.tar.xz"))


def bomb(head=b""):
    """A few kilobytes that unpack to a gigabyte."""
    packer = lzma.LZMACompressor(preset=1)
    zeros = bytes(1 << 24)
    return b"".join([packer.compress(head), *(packer.compress(zeros) for _ in range(64)), packer.flush()])


def test_a_bomb_is_stopped_and_leaves_nothing(tmp_path, spool):
    packed = bomb(vmlinux())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert "bomb" in fault(written(tmp_path, packed))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    assert not list(spool.iterdir())


def test_the_bound_leaves_room_for_real_packages():
    assert limit_of(10 << 20) > 1 << 30 and limit_of(1 << 40) < 1 << 36


def test_memory_that_runs_out_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(harvest_file, "MEMORY_LIMIT", 1 << 20)
    monkeypatch.setattr(harvest_file, "found_in_btf", lambda *_: bytearray(1 << 30))

    assert "memory" in fault(written(tmp_path, btf()))
    assert bytearray(1 << 30), "the bound is lifted again"


@pytest.mark.parametrize("data", [b"\xed\xab\xee\xdb" * 40, b"!<arch>\ndebian-binary   " + b"x" * 80,
                                  rpm({"x": b"y"}, lambda _: cpio({"n": b"1"})[:60]),
                                  b"\x28\xb5\x2f\xfd" + b"\xff" * 100], ids=["rpm", "deb", "cpio", "zstd"])
def test_a_package_of_garbage(tmp_path, data):
    assert "damaged" in fault(written(tmp_path, data)) or "unknown" in fault(written(tmp_path, data))


def test_a_boot_image_of_garbage_is_foreign(tmp_path):
    assert read(written(tmp_path, bzimage(b"\x1f\x8b\x08" + b"\xff" * 9000))).foreign


def test_a_file_nobody_may_read(tmp_path):
    path = written(tmp_path, btf())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")
    assert "Permission denied" in fault(path)


def test_one_bad_member_does_not_cost_the_good_one(tmp_path):
    report = read(written(tmp_path, tar({"1.0.0.btf": btf()[:50], "2.0.0.btf": btf()}, "w:gz")))

    assert [f.kernel.release for f in report.found] == ["2.0.0"] and report.faults[0].startswith("1.0.0.btf: ")
