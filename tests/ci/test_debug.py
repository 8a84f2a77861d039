"""A debug package gives its vmlinux, of just this build, or the reason why there is none; the package is a real one."""

import subprocess

import pytest

from ci import apt
from ci.apt import FetchError
from ci.debug import extract, with_dwarf
from ci.fetch import Image
from ci.kernels import Entry

RELEASE, VERSION = "6.1.0-9-amd64", "6.1.27-1"
ENTRY = Entry("6.1", ("sec", "main"), r"linux-image-6\.1\.0-\d+-amd64", "generic", "x86_64")
PLACES = [f"boot/vmlinux-{RELEASE}", f"lib/modules/{RELEASE}/vmlinux"]


def debug_package(directory, place=PLACES[0]):
    root = directory / "root"
    vmlinux = root / "usr/lib/debug" / place
    vmlinux.parent.mkdir(parents=True)
    vmlinux.write_bytes(b"vmlinux" * 1000)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: linux-image-{RELEASE}-dbg\nVersion: {VERSION}\nArchitecture: amd64\nMaintainer: me <me@here>\n"
        "Description: test\n")
    subprocess.run(["dpkg-deb", "-b", root, directory / "dbg.deb"], check=True, capture_output=True)
    return directory / "dbg.deb"


@pytest.fixture
def had(tmp_path, monkeypatch):
    """Asks for DWARF of an image, where a mirror's index names a debug package of some version."""
    def had(version):
        index = f"Package: linux-image-{RELEASE}-dbg\nVersion: {version}\n\n"
        monkeypatch.setattr(apt, "index", lambda suite, *_: index if suite == "main" else "")
        monkeypatch.setattr(apt, "download", lambda package, suite, *_: deb)
        image = Image("linux-image", VERSION, RELEASE, tmp_path / "vmlinuz", ("a note",))
        return with_dwarf(ENTRY, image, tmp_path / "cache")

    deb = debug_package(tmp_path)
    return had


@pytest.mark.parametrize("place", PLACES)
def test_the_one_file_is_taken_out(tmp_path, place):
    extract(debug_package(tmp_path, place), RELEASE, tmp_path / "vmlinux")
    assert (tmp_path / "vmlinux").read_bytes() == b"vmlinux" * 1000


def test_a_package_of_another_kernel_is_told(tmp_path):
    with pytest.raises(FetchError, match=r"dbg\.deb holds no vmlinux of 6"):
        extract(debug_package(tmp_path, "boot/vmlinux-other"), RELEASE, tmp_path / "vmlinux")


def test_a_package_cut_short_is_told_and_leaves_no_vmlinux(had, tmp_path):
    deb = tmp_path / "dbg.deb"
    deb.write_bytes(deb.read_bytes()[:-200])
    image = had(VERSION)
    assert image.vmlinux is None
    assert "dbg.deb" in image.notes[1]
    assert list((tmp_path / "cache/debug").iterdir()) == []


def test_the_vmlinux_of_just_this_build(had, tmp_path):
    image = had(VERSION)
    assert image.vmlinux.read_bytes() == b"vmlinux" * 1000
    assert had("gone from the index") == image


def test_another_builds_dwarf_would_be_a_wrong_judge(had):
    image = had("6.1.28-1")
    assert image.vmlinux is None
    assert image.notes == ("a note", f"no DWARF: sec, main have no linux-image-{RELEASE}-dbg {VERSION}")
