"""Where packages come from: this machine's own apt configuration, and Ubuntu's archive where it does not know one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_DEBIAN_SUITE = re.compile(
    r"(stable|oldstable|oldoldstable|testing|unstable|experimental|sid|bullseye|bookworm|trixie|forky)"
    r"(-updates|-security|-backports|/updates)?"
)
# A PPA has suites of the same names, but none of updates.
_UBUNTU_SUITE = re.compile(r"(trusty|xenial|bionic|focal|jammy|noble)(-updates|-security|-backports)?")
UBUNTU = "http://archive.ubuntu.com/ubuntu"
_ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)")


@dataclass(frozen=True)
class Archive:
    """An apt source: one address with the suites and components taken from it."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    """Key ring path, fingerprint or whole key as the source has it; empty: the machine's trusted keys."""

    @property
    def is_security(self) -> bool:
        return any(suite.endswith(("-security", "/updates")) for suite in self.suites)

    @property
    def is_debian(self) -> bool:
        return "main" in self.components and all(_DEBIAN_SUITE.fullmatch(suite) for suite in self.suites)

    @property
    def is_ubuntu(self) -> bool:
        ours = "main" in self.components and all(_UBUNTU_SUITE.fullmatch(suite) for suite in self.suites)
        return ours and any(suite.endswith("-updates") for suite in self.suites)


def archive_for(suite: str, archives: list[Archive]) -> Archive | None:
    """The archive that holds a suite, which need not be one the machine itself takes packages from."""
    if is_ubuntu(suite):
        return next((a for a in archives if a.is_ubuntu), None)
    security = suite.endswith("-security")
    return next((a for a in archives if a.is_debian and a.is_security == security), None)


def is_ubuntu(suite: str) -> bool:
    return _UBUNTU_SUITE.fullmatch(suite) is not None


def ubuntu(keyring: Path) -> Archive:
    """$KCOMPAT_UBUNTU_MIRROR, else Ubuntu's own archive; Debian's apt must not be told of it, so it is named here."""
    return Archive(os.environ.get("KCOMPAT_UBUNTU_MIRROR") or UBUNTU, (), ("main",), str(keyring))


def sources_text(archive: Archive, suite: str) -> str:
    """A deb822 sources file for one suite."""
    signed = f"Signed-By: {archive.signed_by}\n" if archive.signed_by else ""
    return f"Types: deb\nURIs: {archive.uri}\nSuites: {suite}\nComponents: main\n{signed}"


def machine_archives(etc: Path = Path("/etc/apt")) -> list[Archive]:
    found: list[Archive] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources" and path.is_file():
            found += parse_deb822(path.read_text())
        elif path.suffix == ".list" and path.is_file():
            found += parse_list(path.read_text())
    return found


def parse_list(text: str) -> Iterator[Archive]:
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.split("#")[0].strip())
        if match:
            options = dict(option.partition("=")[::2] for option in (match["options"] or "").split())
            components = tuple(match["components"].split())
            yield Archive(match["uri"], (match["suite"],), components, options.get("signed-by", ""))


def parse_deb822(text: str) -> Iterator[Archive]:
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", kept):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')}\n{line}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in ("no", "false"):
            suites, components = tuple(fields.get("suites", "").split()), tuple(fields.get("components", "").split())
            for uri in fields.get("uris", "").split():
                yield Archive(uri, suites, components, fields.get("signed-by", ""))
