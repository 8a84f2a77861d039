"""Debian's kernel source: the newest that is there, unpacked whole or not at all; apt is played."""

import subprocess

import pytest

from ci import apt
from ci.apt import FetchError, GoneError
from ci.kernels import Built
from ci.source import candidates, unpack

ENTRY = Built("5.10-x", ("sec", "main"), "5.10", ("base",))


def index(*versions, name="linux-source-5.10"):
    return "".join(f"Package: {name}\nVersion: {version}\n\n" for version in versions)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(apt, "index", lambda suite, architecture, cache: index("5.10.9-1"))
    return candidates(ENTRY, tmp_path / "cache")[0]


def package(into, archive):
    """A real package that holds one real archive, as Debian's do."""
    root = into / "root"
    (root / "usr/src").mkdir(parents=True)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text("Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n")
    (into / "linux/kernel").mkdir(parents=True)
    (into / "linux/Makefile").write_text("all:\n")
    subprocess.run(["tar", "-cJf", root / "usr/src" / archive, "-C", into, "linux"], check=True)
    subprocess.run(["dpkg-deb", "-b", root, into / "a.deb"], check=True, capture_output=True)
    return into / "a.deb"


def test_the_newest_of_all_suites_comes_first(tmp_path, monkeypatch):
    main = index("5.10.218-1") + index("6.1.1-1", name="linux-source-6.1")
    texts = {"sec": index("5.10.9-1", "5.10.262-1"), "main": main}
    monkeypatch.setattr(apt, "index", lambda suite, architecture, cache: texts[suite])
    assert [(s.package.version, s.suite) for s in candidates(ENTRY, tmp_path)] == [
        ("5.10.262-1", "sec"), ("5.10.218-1", "main"), ("5.10.9-1", "sec")]


def test_without_a_source_the_message_says_what_was_tried(tmp_path, monkeypatch):
    def index_of(suite, architecture, cache):
        if suite == "sec":
            raise FetchError("no network")
        return ""

    monkeypatch.setattr(apt, "index", index_of)
    with pytest.raises(FetchError, match=r"no source of 5\.10-x is to be had: sec: no network"):
        candidates(ENTRY, tmp_path)
    monkeypatch.setattr(apt, "index", lambda suite, architecture, cache: "")
    with pytest.raises(FetchError, match=r"no package in sec, main matches linux-source-5"):
        candidates(ENTRY, tmp_path)


def test_a_tree_is_unpacked_once(source, tmp_path, monkeypatch):
    downloads = []

    def download(wanted, suite, architecture, cache, into):
        downloads.append(wanted.version)
        return package(into, "linux-source-5.10.tar.xz")

    monkeypatch.setattr(apt, "download", download)
    for _ in range(2):
        unpack(source, "x86_64", tmp_path / "cache")
    assert (source.tree / "Makefile").is_file()
    assert (source.tree / "kernel").is_dir()
    assert downloads == ["5.10.9-1"]


def test_what_fails_leaves_no_tree(source, tmp_path, monkeypatch):
    def gone(*_):
        raise GoneError("404")

    monkeypatch.setattr(apt, "download", gone)
    with pytest.raises(GoneError):
        unpack(source, "x86_64", tmp_path / "cache")
    monkeypatch.setattr(apt, "download", lambda p, *where: package(where[-1], "something-else.tar.xz"))
    with pytest.raises(FetchError, match=r"5\.10\.9-1 holds no linux-source-5\.10\.tar\.xz"):
        unpack(source, "x86_64", tmp_path / "cache")
    assert list(source.tree.parent.iterdir()) == []
