"""Fetching falls through dropped builds, says what it tried, and leaves whole kernels or none; apt is played."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from ci import apt as real_apt
from ci.apt import FetchError, GoneError
from ci.fetch import arrange, cache_dir, fetch
from ci.kernels import Entry

ENTRY = Entry("5.10", ("sec", "main"), r"linux-image-5\.10\.0-\d+-amd64", "generic", "x86_64")


def index(*numbers):
    return "".join(f"Package: linux-image-5.10.0-{n}-amd64\nVersion: 5.10.{n}-1\nDepends: kmod\n\n" for n in numbers)


def unpacked(root, release, merged=False):
    modules = root / ("usr/lib/modules" if merged else "lib/modules") / release
    (modules / "kernel").mkdir(parents=True)
    boot = modules if merged else root / "boot"
    boot.mkdir(exist_ok=True)
    (boot / ("vmlinuz" if merged else f"vmlinuz-{release}")).write_bytes(b"kernel")
    return root


class Apt:
    """An apt whose mirror has lost the builds in ``gone``."""

    def __init__(self, cache):
        self.cache = cache
        self.gone = ()
        self.indexes = {"sec": index(46, 45), "main": index(30)}
        self.downloads = []

    def download(self, package, suite, architecture, cache, into):
        self.downloads.append(package.name)
        if package.name in self.gone:
            raise GoneError(f"{package.name}: 404")
        tree = unpacked(into / "tree", package.name.removeprefix("linux-image-"))
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(
            f"Package: {package.name}\nVersion: 1\nArchitecture: amd64\nMaintainer: a\nDescription: a\n"
        )
        subprocess.run(["dpkg-deb", "-b", tree, into / "k.deb"], check=True, capture_output=True)
        return into / "k.deb"

    def index(self, suite, architecture, cache):
        if suite not in self.indexes:
            raise FetchError("no network")
        return self.indexes[suite]


@pytest.fixture
def apt(monkeypatch, tmp_path):
    played = Apt(tmp_path / "cache")
    monkeypatch.setattr(real_apt, "index", played.index)
    monkeypatch.setattr(real_apt, "download", played.download)
    return played


needs_kmod = pytest.mark.skipif(not shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin"), reason="no depmod")


@needs_kmod
def test_the_newest_is_taken_and_kept(apt):
    first = fetch(ENTRY, apt.cache)
    assert fetch(ENTRY, apt.cache) == first
    assert (first.release, first.version, first.notes) == ("5.10.0-46-amd64", "5.10.46-1", ())
    assert (first.vmlinuz.parent.parent / "lib/modules/5.10.0-46-amd64/modules.dep").is_file()
    assert apt.downloads == ["linux-image-5.10.0-46-amd64"]


@needs_kmod
def test_a_dropped_build_gives_way_to_the_next_and_is_noted(apt):
    apt.gone = ("linux-image-5.10.0-46-amd64", "linux-image-5.10.0-45-amd64")
    image = fetch(ENTRY, apt.cache)
    assert image.release == "5.10.0-30-amd64"
    assert [note.split(":")[0] for note in image.notes] == [
        "linux-image-5.10.0-46-amd64",
        "linux-image-5.10.0-45-amd64",
    ]


def test_when_none_is_left_the_message_names_all_that_was_tried(apt):
    apt.gone = tuple(f"linux-image-5.10.0-{n}-amd64" for n in (46, 45, 30))
    with pytest.raises(FetchError, match=r"no build of 5\.10 .*46-amd64: 404; .*45-amd64: 404; .*30-amd64: 404"):
        fetch(ENTRY, apt.cache)
    assert not list((apt.cache / "kernels").iterdir())


def test_no_network_is_the_reason_given(apt):
    apt.indexes = {}
    with pytest.raises(FetchError, match="sec: no network; main: no network"):
        fetch(ENTRY, apt.cache)


def test_no_match_says_what_was_looked_for(apt):
    apt.indexes = {"sec": "", "main": ""}
    with pytest.raises(FetchError, match=r"no package in sec, main matches linux-image"):
        fetch(ENTRY, apt.cache)


@needs_kmod
@pytest.mark.parametrize("merged", [False, True])
def test_both_of_debians_layouts_become_one(tmp_path, merged):
    arrange(unpacked(tmp_path / "x", "7.3-amd64", merged), tmp_path / "kernel")
    assert (tmp_path / "kernel/boot/vmlinuz-7.3-amd64").read_bytes() == b"kernel"
    assert (tmp_path / "kernel/lib/modules/7.3-amd64/modules.dep").is_file()


def test_packages_without_modules_or_vmlinuz_are_refused(tmp_path):
    (tmp_path / "x/lib/modules").mkdir(parents=True)
    with pytest.raises(FetchError, match="modules of one kernel"):
        arrange(tmp_path / "x", tmp_path / "kernel")
    (tmp_path / "x/lib/modules/5.10").mkdir()
    with pytest.raises(FetchError, match=r"5\.10 hold no vmlinuz"):
        arrange(tmp_path / "x", tmp_path / "kernel")


def test_a_404_is_told_from_other_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(real_apt, "COMMAND_DEADLINE_S", 0.3)
    with pytest.raises(GoneError):
        real_apt.run(["sh", "-c", "echo 'E: Failed to fetch x  404  Not Found' >&2; exit 100"])
    with pytest.raises(FetchError, match="Temporary failure") as caught:
        real_apt.run(["sh", "-c", "echo 'E: Temporary failure' >&2; exit 100"])
    assert not isinstance(caught.value, GoneError)
    begun = time.monotonic()
    with pytest.raises(FetchError, match="did not end within"):
        real_apt.run(["sleep", "60"])
    assert time.monotonic() - begun < 10
    with pytest.raises(FetchError, match="cannot run no-such-tool"):
        real_apt.run(["no-such-tool"])


KEYRING_INDEX = "Package: ubuntu-keyring\nVersion: 2023.11\n\n"


def test_ubuntus_keys_are_taken_from_debian_once(apt, monkeypatch, tmp_path):
    def download(package, suite, architecture, cache, into):
        root = into / "tree"
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN/control").write_text(
            f"Package: {package.name}\nVersion: {package.version}\nArchitecture: all\nMaintainer: a\nDescription: a\n")
        (root / "usr/share/keyrings").mkdir(parents=True)
        (root / "usr/share/keyrings/ubuntu-archive-keyring.gpg").write_bytes(b"keys")
        subprocess.run(["dpkg-deb", "-b", root, into / "k.deb"], check=True, capture_output=True)
        taken.append(suite)
        return into / "k.deb"

    taken = []
    apt.indexes = {"trixie": "", "sid": KEYRING_INDEX}
    monkeypatch.setattr(real_apt, "UBUNTU_KEYRING", Path("/nowhere/ubuntu-archive-keyring.gpg"))
    monkeypatch.setattr(real_apt, "download", download)
    found = [real_apt._ubuntu_keyring("amd64", apt.cache) for _ in range(2)]
    assert {path.read_bytes() for path in found} == {b"keys"}
    assert taken == ["sid"]
    apt.indexes = {"trixie": "", "sid": ""}
    with pytest.raises(FetchError, match=r"trixie, sid have no ubuntu-keyring"):
        real_apt._ubuntu_keyring("amd64", tmp_path / "other")


def test_another_fetch_is_waited_for_with_a_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(real_apt, "LOCK_DEADLINE_S", 0.1)
    with real_apt.lock(tmp_path), pytest.raises(FetchError, match="another process"), real_apt.lock(tmp_path):
        pass


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("KCOMPAT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("KCOMPAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "kcompat"
