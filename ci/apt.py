"""Packages by way of apt, in state directories of our own: the machine's lists and caches stay as they are."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ci.debian import Package, parse_packages
from ci.mirror import Archive, archive_for, is_ubuntu, machine_archives, sources_text, ubuntu

log = logging.getLogger(__name__)

INDEX_MAX_AGE_S = 24 * 3600.0
COMMAND_DEADLINE_S = 900.0
LOCK_DEADLINE_S = 1800.0
_KEYRING_PLACE = "usr/share/keyrings/ubuntu-archive-keyring.gpg"
UBUNTU_KEYRING = Path("/", _KEYRING_PLACE)
# Where Debian has it: not in bookworm.
_KEYRING_SUITES = ("trixie", "sid")


class FetchError(Exception):
    """A package could not be had; the message says what was tried."""


class GoneError(FetchError):
    """The index names a package that the mirror no longer has."""


def index(suite: str, architecture: str, cache: Path) -> str:
    archive = _archive(suite, architecture, cache)
    options = _apt_options(suite, architecture, cache)
    state = _state_dir(suite, architecture, cache)
    sources, stamp = state / "debian.sources", state / "updated"
    text = sources_text(archive, suite)
    if not sources.exists() or sources.read_text() != text:
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        stamp.unlink(missing_ok=True)
        sources.write_text(text)
    if not stamp.exists() or time.time() - stamp.stat().st_mtime > INDEX_MAX_AGE_S:
        try:
            run(["apt-get", *options, "--error-on=any", "update"])
            stamp.touch()
        except FetchError as error:
            # Without a network an old index still finds the kernels that are in the cache.
            if not stamp.exists():
                raise
            log.warning("using the index of %s as it was last fetched: %s", suite, error)
    files = run(["apt-get", *options, "indextargets", "--format", "$(FILENAME)", "Created-By: Packages"]).split()
    return "".join(run(["/usr/lib/apt/apt-helper", *options, "cat-file", path]) for path in files)


def _archive(suite: str, architecture: str, cache: Path) -> Archive:
    if archive := archive_for(suite, machine_archives()):
        return archive
    if is_ubuntu(suite):
        return ubuntu(_ubuntu_keyring(architecture, cache))
    raise FetchError(f"this machine's apt has no Debian archive that holds {suite}")


def _ubuntu_keyring(architecture: str, cache: Path) -> Path:
    """Ubuntu's keys: as installed here, else out of Debian's package, which Debian's own keys vouch for."""
    if UBUNTU_KEYRING.is_file():
        return UBUNTU_KEYRING
    kept = cache / "keyrings" / UBUNTU_KEYRING.name
    if kept.is_file():
        return kept
    name = re.compile("ubuntu-keyring")
    for suite in _KEYRING_SUITES:
        for package in parse_packages(index(suite, architecture, cache), name):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".unpack-", dir=kept.parent) as temporary:
                work = Path(temporary)
                run(["dpkg-deb", "-x", str(download(package, suite, architecture, cache, work)), str(work / "x")])
                (work / "x" / _KEYRING_PLACE).rename(kept)
            return kept
    raise FetchError(f"{', '.join(_KEYRING_SUITES)} have no ubuntu-keyring to check Ubuntu's packages with")


def _state_dir(suite: str, architecture: str, cache: Path) -> Path:
    return cache / "apt" / f"{suite}-{architecture}"


def _apt_options(suite: str, architecture: str, cache: Path) -> list[str]:
    """Options that turn apt away from the system's own lists, status and caches; its mirrors' proxies stay."""
    state = _state_dir(suite, architecture, cache)
    settings = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "debian.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        # Hooks of other packages (appstream, packagekit) act on the system's lists, not on ours.
        "APT::Update::Post-Invoke-Success": "",
        "APT::Update::Post-Invoke": "",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": 2,
        "Acquire::http::Timeout": 60,
        "Acquire::Languages": "none",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def download(package: Package, suite: str, architecture: str, cache: Path, into: Path) -> Path:
    into = into / package.name
    into.mkdir()
    options = _apt_options(suite, architecture, cache)
    log.info("downloading %s %s from %s", package.name, package.version, suite)
    run(["apt-get", *options, "download", f"{package.name}={package.version}"], cwd=into)
    (deb,) = into.glob("*.deb")
    return deb


def download_with_dependencies(
    names: Sequence[str], suite: str, architecture: str, cache: Path, into: Path
) -> list[Path]:
    """Packages and all that an empty system needs for them; the suite's index must be there."""
    (into / "partial").mkdir(parents=True)
    options = [*_apt_options(suite, architecture, cache), "-o", f"Dir::Cache::archives={into}"]
    log.info("downloading %s and what they need from %s", ", ".join(names), suite)
    run(["apt-get", *options, "--yes", "--no-install-recommends", "--download-only", "install", *names])
    return sorted(into.glob("*.deb"))


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=COMMAND_DEADLINE_S
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{command[0]} did not end within {COMMAND_DEADLINE_S:.0f} s") from error
    except OSError as error:
        raise FetchError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode == 0:
        return done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-1:]
    message = f"{' '.join([command[0], *command[-1:]])}: {' '.join(errors)}"
    raise GoneError(message) if "404  Not Found" in done.stderr else FetchError(message)


@contextlib.contextmanager
def lock(cache: Path, name: str = "lock", deadline_s: float | None = None) -> Iterator[None]:
    """One at a time per cache and name: apt's own lock fails at once instead of waiting."""
    cache.mkdir(parents=True, exist_ok=True)
    patience_s = LOCK_DEADLINE_S if deadline_s is None else deadline_s
    deadline = time.monotonic() + patience_s
    with (cache / name).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FetchError(f"another process has held {file.name} for {patience_s:.0f} s") from None
                time.sleep(0.5)
        yield
