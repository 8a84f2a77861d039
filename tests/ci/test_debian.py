"""Which build an entry takes: Debian's version order, split images, dropped modules."""

import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ci.debian import builds, parse_packages, version_key
from ci.kernels import MATRIX, Entry, select

ENTRY = Entry("5.10", ("sec", "main"), r"linux-image-5\.10\.0-\d+-amd64(-unsigned)?", "generic", "x86_64")
SPLIT = Entry("7", ("sid",), r"linux-image-7\.\d+-amd64", "generic", "x86_64")


def stanza(name, version, depends="kmod"):
    return f"Package: {name}\nVersion: {version}\nDepends: {depends}\nDescription: a\n kernel: really\n\n"


def test_newest_version_wins_over_suites_and_number_order():
    indexes = [
        (
            "main",
            stanza("linux-image-5.10.0-9-amd64", "5.10.70-1") + stanza("linux-image-5.10.0-32-amd64", "5.10.223-1"),
        ),
        ("sec", stanza("linux-image-5.10.0-46-amd64", "5.10.262-1")),
    ]
    assert [(b.suite, b.image.version) for b in builds(ENTRY, indexes)] == [
        ("sec", "5.10.262-1"),
        ("main", "5.10.223-1"),
        ("main", "5.10.70-1"),
    ]


def test_signed_comes_before_unsigned_of_the_same_version():
    text = stanza("linux-image-5.10.0-46-amd64-unsigned", "5.10.262-1") + stanza(
        "linux-image-5.10.0-46-amd64", "5.10.262-1"
    )
    assert [b.image.name for b in builds(ENTRY, [("sec", text)])] == [
        "linux-image-5.10.0-46-amd64",
        "linux-image-5.10.0-46-amd64-unsigned",
    ]


def test_other_flavours_debug_and_meta_packages_do_not_match():
    names = [
        "linux-image-5.10.0-46-rt-amd64",
        "linux-image-5.10.0-46-amd64-dbg",
        "linux-image-amd64",
        "xlinux-image-5.10.0-1-amd64",
    ]
    assert builds(ENTRY, [("sec", "".join(stanza(name, "5.10.262-1") for name in names))]) == []


def test_a_split_image_brings_its_parts():
    parts = ", ".join(f"linux-{part}-7.3-amd64 (= 7.3-1)" for part in ("base", "binary", "modules"))
    depends = f"{parts}, dracut | initramfs-tools, linux-base (>= 4)"
    text = stanza("linux-image-7.3-amd64", "7.3-1", depends) + "".join(
        stanza(f"linux-{part}-7.3-amd64", "7.3-1") for part in ("base", "binary", "modules")
    )
    (build,) = builds(SPLIT, [("sid", text)])
    assert [p.name.split("-")[1] for p in build.packages] == ["image", "base", "binary", "modules"]


def test_a_split_image_without_its_modules_is_no_build():
    depends = "linux-binary-7.0-amd64 (= 7.0-1), linux-modules-7.0-amd64 (= 7.0-1)"
    text = stanza("linux-image-7.0-amd64", "7.0-1", depends) + stanza("linux-binary-7.0-amd64", "7.0-1")
    assert builds(SPLIT, [("sid", text)]) == []


def test_parts_of_another_version_do_not_count():
    text = stanza("linux-image-7.3-amd64", "7.3-2", "linux-modules-7.3-amd64 (= 7.3-2)") + stanza(
        "linux-modules-7.3-amd64", "7.3-1"
    )
    assert builds(SPLIT, [("sid", text)]) == []


def test_empty_index_and_broken_stanzas_yield_nothing():
    assert list(parse_packages("\n\n\nnonsense\n\nPackage\n", re.compile(".*linux.*"))) == []


PIECES = st.text(alphabet="0129.+~ab", max_size=6)
VERSIONS = st.builds(
    lambda a, b, c: f"1{a}{b}{c}", PIECES, PIECES, st.one_of(st.just(""), PIECES.map(lambda p: f"-1{p}"))
)


@settings(max_examples=150, deadline=None)
@given(VERSIONS, VERSIONS)
def test_version_order_is_dpkgs(left, right):
    def dpkg(relation):
        return subprocess.run(["dpkg", "--compare-versions", left, relation, right], check=False).returncode == 0

    assert (version_key(left) < version_key(right)) == dpkg("lt")
    assert (version_key(left) == version_key(right)) == dpkg("eq")


@pytest.mark.parametrize(
    ("older", "newer"),
    [("7.3.4-1~bpo13+1", "7.3.4-1"), ("6.12.90-2", "6.12.107-1"), ("9.9-1", "1:0.1-1"), ("6.1~rc8-1~exp1", "6.1-1")],
)
def test_orders_that_debian_kernels_depend_on(older, newer):
    assert version_key(older) < version_key(newer)


def test_names_are_unique_and_patterns_compile():
    assert len({entry.name for entry in MATRIX}) == len(MATRIX)
    for entry in MATRIX:
        assert entry.suites
        re.compile(entry.package)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("5.10", "linux-image-5.10.0-46-amd64"),
        ("6.1", "linux-image-6.1.0-56-amd64-unsigned"),
        ("6.12", "linux-image-6.12.115+deb13.1-amd64"),
        ("6.12", "linux-image-6.12.95+deb12-amd64-unsigned"),
        ("newest", "linux-image-7.3-amd64"),
        ("newest", "linux-image-7.3.4+deb13-amd64"),
    ],
)
def test_patterns_match_the_names_debian_uses(name, package):
    (entry,) = select(name, MATRIX)
    assert re.fullmatch(entry.package, package)
    assert not re.fullmatch(entry.package, package.replace("-amd64", "-rt-amd64"))
    assert not re.fullmatch(entry.package, package + "-dbg")


def test_an_image_is_complete_without_what_only_its_installation_runs():
    entry = Entry("x", ("s",), r"linux-image-6\.18\.15-amd64", "generic", "x86_64")

    def index(depends):
        return f"Package: linux-image-6.18.15-amd64\nVersion: 6.18.15-1\nDepends: kmod, {depends}\n\n"

    (build,) = builds(entry, [("s", index("linux-base-6.18.15-amd64 (= 6.18.15-1)"))])
    assert [package.name for package in build.packages] == ["linux-image-6.18.15-amd64"]
    assert builds(entry, [("s", index("linux-modules-6.18.15-amd64 (= 6.18.15-1)"))]) == []
