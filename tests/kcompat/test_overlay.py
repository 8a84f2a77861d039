"""Overlays: their layers as mountinfo tells them, and the file beneath, found by what is the same of both."""

import os
from pathlib import Path

import pytest

from kcompat import overlay
from kcompat.errors import Missing
from kcompat.overlay import Overlay, beneath, overlays

SEVERAL = (r"25 1 0:20 / / rw,relatime shared:1 - overlay root "
           r"rw,lowerdir=/l/A:/l/B:/base,upperdir=/written/upper,workdir=/written/work,xino=off")


def layers(options):
    (found,) = overlays(f"7 1 0:20 / / rw - overlay none {options}\n").values()
    return found.layers


def test_the_upper_layer_is_first_then_the_lower_ones_in_their_order():
    assert overlays(SEVERAL) == {25: Overlay("/", "/", ("/written/upper", "/l/A", "/l/B", "/base"))}


def test_what_is_no_overlay_is_none():
    other = "22 25 253:0 / /base ro,relatime - ext4 /dev/vda ro\n24 25 0:19 / /overlay rw - tmpfs overlay rw\n"
    assert list(overlays(f"{other}{SEVERAL}\n")) == [25]


def test_a_part_of_an_overlay_is_told_with_its_place():
    (found,) = overlays(r"9 1 0:20 /usr\040x /mnt/a\040b rw - overlay none ro,lowerdir=/a:/b").values()
    assert found == Overlay("/usr x", "/mnt/a b", ("/a", "/b"))


@pytest.mark.parametrize("options, expected", [
    ("ro,lowerdir=/only", ("/only",)),
    (r"rw,lowerdir=/a\040b:/c\011d,upperdir=/e\134\134f", ("/e\\f", "/a b", "/c\td")),
    (r"rw,lowerdir=/a\134:b:/c\134\134:/d\054e,upperdir=/u\054p", ("/u,p", "/a:b", "/c\\", "/d,e")),
    ("rw,lowerdir=/a::/data,metacopy=on", ("/a", "/data")),
    ("rw,lowerdir=l/A:l/B", ("l/A", "l/B")),
    ("rw", ()),
])
def test_names_that_have_what_separates_in_them(options, expected):
    assert layers(options) == expected


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """(a file, a way to say which layers its mount has): an overlay as far as mountinfo tells."""
    root = tmp_path / "merged"
    file = root / "usr/bin/bash"
    file.parent.mkdir(parents=True)
    file.write_text("what is run")

    def has(*layers):
        monkeypatch.setattr(overlay, "_overlay", lambda path, number, proc: (
            Overlay("/", str(root), tuple(map(str, layers))) if path == str(file) else None))
        return str(file)

    return file, has


def copy(file, layer, mtime_ns=None):
    there = layer / "usr/bin/bash"
    there.parent.mkdir(parents=True)
    there.write_bytes(file.read_bytes())
    os.utime(there, ns=(0, file.stat().st_mtime_ns if mtime_ns is None else mtime_ns))
    return str(there)


def test_the_first_layer_that_has_the_file_has_it(shown, tmp_path):
    file, has = shown
    second = copy(file, tmp_path / "second")
    copy(file, tmp_path / "third")
    path = has(tmp_path / "first", tmp_path / "second", tmp_path / "third")
    assert beneath(path) == second


def test_another_file_by_the_same_name_is_not_taken(shown, tmp_path):
    file, has = shown
    copy(file, tmp_path / "other", mtime_ns=7)
    path = has(tmp_path / "other", tmp_path / "same")
    same = copy(file, tmp_path / "same")
    assert beneath(path) == same


def test_a_file_that_is_open_is_found_whatever_stands_at_its_path_by_now(shown, tmp_path):
    file, has = shown
    layer = copy(file, tmp_path / "layer")
    path = has(tmp_path / "layer")
    with file.open() as opened:
        file.rename(file.with_name("old"))
        file.write_text("another")
        (tmp_path / "layer/usr/bin/bash").rename(tmp_path / "layer/usr/bin/old")
        assert beneath(path, file=opened.fileno()) == layer.replace("bash", "old")


@pytest.mark.parametrize("layer", ["/not/to/be/seen", "relative"])
def test_layers_that_are_not_to_be_seen_are_said(shown, layer):
    file, has = shown
    with pytest.raises(Missing, match=f"{file} lies on an overlay whose layers are not to be seen from here"):
        beneath(has(layer))


def test_a_file_on_no_overlay_has_nothing_beneath(tmp_path):
    (tmp_path / "file").touch()
    assert beneath(str(tmp_path / "file")) is None or "overlay" in Path("/proc/self/mountinfo").read_text()
