"""Downloads a kernel with apt in a state directory of its own and unpacks it into the cache, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.debian import Build, Package, builds
from ci.kernels import DEBIAN_ARCHITECTURES, Entry
from ci.mirror import archive_for, machine_archives, sources_text

log = logging.getLogger(__name__)

INDEX_MAX_AGE_S = 24 * 3600.0
COMMAND_DEADLINE_S = 900.0
LOCK_DEADLINE_S = 1800.0


class FetchError(Exception):
    """A kernel could not be had; the message says what was tried."""


class GoneError(FetchError):
    """The index names a package that the mirror no longer has."""


@dataclass(frozen=True)
class Image:
    """An unpacked kernel: ``vmlinuz`` below the same root as ``lib/modules/RELEASE``, as virtme-ng wants it."""

    package: str
    version: str
    release: str
    vmlinuz: Path
    notes: tuple[str, ...] = ()
    vmlinux: Path | None = None
    """The same build with DWARF, where there is one: it is the judge of kernels without BTF."""


def cache_dir() -> Path:
    """$KCOMPAT_CACHE, else the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KCOMPAT_CACHE") or Path(base) / "kcompat")


def fetch(entry: Entry, cache: Path) -> Image:
    """The newest build of an entry that is still there; a build the mirror has dropped gives way to the next."""
    architecture = DEBIAN_ARCHITECTURES[entry.machine]
    with _lock(cache):
        indexes, notes = [], []
        for suite in entry.suites:
            try:
                indexes.append((suite, _index(suite, architecture, cache)))
            except FetchError as error:
                notes.append(f"{suite}: {error}")
        for build in builds(entry, indexes):
            directory = cache / "kernels" / f"{build.image.name}_{build.image.version}_{architecture}"
            try:
                if not directory.is_dir():
                    _install(build, architecture, cache, directory)
            except GoneError as error:
                notes.append(str(error))
                log.info("%s; trying the next build", error)
                continue
            return _image(build, directory, tuple(notes))
    tried = "; ".join(notes) or f"no package in {', '.join(entry.suites)} matches {entry.package}"
    raise FetchError(f"no build of {entry.name} is to be had: {tried}")


def _image(build: Build, directory: Path, notes: tuple[str, ...]) -> Image:
    (vmlinuz,) = directory.glob("boot/vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    return Image(build.image.name, build.image.version, release, vmlinuz, notes)


def _index(suite: str, architecture: str, cache: Path) -> str:
    archive = archive_for(suite, machine_archives())
    if archive is None:
        raise FetchError(f"this machine's apt has no Debian archive that holds {suite}")
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
            _run(["apt-get", *options, "--error-on=any", "update"])
            stamp.touch()
        except FetchError as error:
            # Without a network an old index still finds the kernels that are in the cache.
            if not stamp.exists():
                raise
            log.warning("using the index of %s as it was last fetched: %s", suite, error)
    files = _run(["apt-get", *options, "indextargets", "--format", "$(FILENAME)", "Created-By: Packages"]).split()
    return "".join(_run(["/usr/lib/apt/apt-helper", *options, "cat-file", path]) for path in files)


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


def _install(build: Build, architecture: str, cache: Path, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=directory.parent) as temporary:
        work = Path(temporary)
        for package in build.packages:
            _run(["dpkg-deb", "-x", str(_download(package, build.suite, architecture, cache, work)), str(work / "x")])
        arrange(work / "x", work / "kernel")
        (work / "kernel").rename(directory)


def _download(package: Package, suite: str, architecture: str, cache: Path, into: Path) -> Path:
    into = into / package.name
    into.mkdir()
    options = _apt_options(suite, architecture, cache)
    log.info("downloading %s %s from %s", package.name, package.version, suite)
    _run(["apt-get", *options, "download", f"{package.name}={package.version}"], cwd=into)
    (deb,) = into.glob("*.deb")
    return deb


def arrange(unpacked: Path, directory: Path) -> None:
    """One layout out of Debian's two (files in /boot and /lib, or all in /usr/lib/modules), with depmod run."""
    modules = next((m for m in (unpacked / "lib/modules", unpacked / "usr/lib/modules") if m.is_dir()), None)
    releases = [] if modules is None else [path for path in modules.iterdir() if path.is_dir()]
    if len(releases) != 1:
        raise FetchError(f"expected the modules of one kernel, found {[path.name for path in releases]}")
    release = releases[0].name
    vmlinuz = next((v for v in (unpacked / f"boot/vmlinuz-{release}", releases[0] / "vmlinuz") if v.is_file()), None)
    if vmlinuz is None:
        raise FetchError(f"the packages of {release} hold no vmlinuz")
    (directory / "boot").mkdir(parents=True)
    (directory / "lib/modules").mkdir(parents=True)
    shutil.move(vmlinuz, directory / f"boot/vmlinuz-{release}")
    shutil.move(releases[0], directory / f"lib/modules/{release}")
    _run(["depmod", "-b", str(directory), release])


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
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
def _lock(cache: Path) -> Iterator[None]:
    """One fetch at a time per cache: apt's own lock fails at once instead of waiting."""
    cache.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_DEADLINE_S
    with (cache / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FetchError(f"another fetch has held {file.name} for {LOCK_DEADLINE_S:.0f} s") from None
                time.sleep(0.5)
        yield
