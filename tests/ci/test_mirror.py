"""The machine's apt configuration in both spellings, and the archive a suite comes from."""

from pathlib import Path

from ci.mirror import UBUNTU, Archive, archive_for, machine_archives, parse_deb822, parse_list, sources_text, ubuntu

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
# another
Components: main contrib
Signed-By: /usr/share/keyrings/k.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""


def test_deb822_sources_with_comments_and_an_embedded_key():
    main, security = parse_deb822(DEB822)
    assert main == Archive(
        "http://mirror.invalid/debian",
        ("bookworm", "bookworm-updates"),
        ("main", "contrib"),
        "/usr/share/keyrings/k.gpg",
    )
    assert security.signed_by == "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc"


def test_disabled_and_source_only_entries_are_left_out():
    text = DEB822.replace("Types: deb deb-src", "Types: deb-src").replace("Types: deb\n", "Types: deb\nEnabled: no\n")
    assert list(parse_deb822(text)) == []


def test_one_line_sources():
    text = """\
# deb http://no.invalid x main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian bookworm main # c
deb-src http://no.invalid x main
"""
    assert list(parse_list(text)) == [Archive("http://mirror.invalid/debian", ("bookworm",), ("main",), "/k.gpg")]


def test_security_suites_come_from_the_security_archive():
    archives = list(parse_deb822(DEB822))
    assert archive_for("bullseye-security", archives).uri.endswith("/debian-security")
    assert archive_for("sid", archives).uri.endswith("/debian")


def test_third_party_archives_are_never_taken():
    docker = Archive("http://docker.invalid/debian", ("bookworm",), ("stable",))
    postgres = Archive("http://pg.invalid/apt", ("bookworm-pgdg",), ("main",))
    assert archive_for("bookworm", [docker, postgres]) is None


def test_ubuntus_suites_come_from_a_machines_own_mirror_of_ubuntu_and_from_no_ppa():
    mirror = Archive("http://mirror.invalid/ubuntu", ("noble-updates",), ("main",), "/k.gpg")
    ppa = Archive("http://ppa.invalid/x", ("noble",), ("main",))
    debian = Archive("http://mirror.invalid/debian", ("bookworm",), ("main",))
    assert archive_for("xenial-updates", [ppa, debian, mirror]) == mirror
    assert archive_for("xenial-updates", [ppa, debian]) is archive_for("sid", [mirror]) is None


def test_a_machine_without_one_asks_ubuntu_or_whom_the_user_says(monkeypatch):
    monkeypatch.delenv("KCOMPAT_UBUNTU_MIRROR", raising=False)
    text = sources_text(ubuntu(Path("/cache/k.gpg")), "xenial-updates")
    assert text.splitlines()[1:] == [f"URIs: {UBUNTU}", "Suites: xenial-updates", "Components: main",
                                     "Signed-By: /cache/k.gpg"]
    monkeypatch.setenv("KCOMPAT_UBUNTU_MIRROR", "http://mirror.invalid/ubuntu")
    assert ubuntu(Path("/k")).uri == "http://mirror.invalid/ubuntu"


def test_written_sources_read_back_the_same():
    for archive in parse_deb822(DEB822):
        (again,) = parse_deb822(sources_text(archive, "sid"))
        assert again == Archive(archive.uri, ("sid",), ("main",), archive.signed_by)


def test_only_files_apt_would_read_are_read(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/debian.sources.disabled").write_text(DEB822)
    (tmp_path / "sources.list").write_text("deb http://mirror.invalid/debian sid main\n")
    assert [archive.suites[0] for archive in machine_archives(tmp_path)] == ["sid", "bookworm", "bookworm-security"]
