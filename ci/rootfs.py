"""The root of guests that cannot have this machine's: Debian for their machine on an ext4 image, made once."""

from __future__ import annotations

import compileall
import hashlib
import logging
import py_compile
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from ci import apt, ext4
from ci.kernels import DEBIAN_ARCHITECTURES

log = logging.getLogger(__name__)

SUITE, PYTHON, GLIBC = "bookworm", "3.11", 36
PACKAGES = (
    *("?essential", "busybox-static", "iproute2", "kmod", "mount", "nftables", "python3", "python3-bpfcc"),
    # tests/kernel compiles a CO-RE program and its loader.
    *("bpftool", "clang", "gcc", "libbpf-dev", "libc6-dev", "libelf-dev"),
)
# Of the project's test extra only what tests/kernel imports: the rest has no wheels for every machine.
TEST_REQUIREMENTS = frozenset({"hypothesis", "pytest", "pytest-timeout"})
PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
SITE = Path(f"usr/local/lib/python{PYTHON}/dist-packages")
LEFT_OUT = ("./usr/share/doc", "./usr/share/info", "./usr/share/locale", "./usr/share/man")
# Packages are unpacked, not installed: what their scripts would have made.
FILES = {
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
}


@dataclass(frozen=True)
class RootImage:
    """An image of the root, and the busybox of its machine, which starts the guest before there is a root."""

    image: Path
    busybox: Path


def root_image(machine: str, cache: Path) -> RootImage:
    """The root for a machine, out of the cache or made now. Raises FetchError."""
    requirements = project_requirements(PROJECT.read_text())
    directory = cache / "roots" / f"{machine}-{recipe(machine, requirements)}"
    if not directory.is_dir():
        # Held to the end: who comes second wants the same image.
        with apt.lock(cache):
            if not directory.is_dir():
                _build(machine, requirements, cache, directory)
    return RootImage(directory / "root.ext4", directory / "busybox")


def project_requirements(pyproject: str) -> list[str]:
    """What the product and tests/kernel import, as pyproject.toml has it."""
    project = tomllib.loads(pyproject)["project"]
    tests = [r for r in project["optional-dependencies"]["test"] if Requirement(r).name in TEST_REQUIREMENTS]
    return [*project["dependencies"], *tests]


def recipe(machine: str, requirements: Iterable[str]) -> str:
    """A hash of all that decides what is in the image; how it is made is this module and `ci.ext4`."""
    digest = hashlib.sha256("\0".join([machine, *requirements]).encode())
    for source in (Path(__file__), Path(ext4.__file__)):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _build(machine: str, requirements: list[str], cache: Path, directory: Path) -> None:
    log.info("making the root of guests on %s; this takes two minutes, once", machine)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory.parent) as temporary:
        work = Path(temporary)
        tree, made = work / "tree", work / "made"
        made.mkdir()
        _unpack(machine, cache, work / "packages", tree)
        _install_python(machine, requirements, tree / SITE)
        for name, text in FILES.items():
            (tree / name).write_text(text)
        compile_python(tree, (tree / "usr/lib/python3/dist-packages", tree / f"usr/lib/python{PYTHON}", tree / SITE))
        shutil.copy2(tree / "bin/busybox", made / "busybox")
        ext4.make(tree, made / "root.ext4")
        made.rename(directory)


def _unpack(machine: str, cache: Path, packages: Path, tree: Path) -> None:
    architecture = DEBIAN_ARCHITECTURES[machine]
    apt.index(SUITE, architecture, cache)
    debs = apt.download_with_dependencies(PACKAGES, SUITE, architecture, cache, packages)
    for name in ("bin", "lib", "lib64", "sbin"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    excludes = [f"--exclude={path}" for path in LEFT_OUT]
    script = 'deb=$1; shift; dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink "$@"'
    for deb in debs:
        apt.run(["sh", "-c", script, "sh", str(deb), "-C", str(tree), *excludes])


def _install_python(machine: str, requirements: list[str], site: Path) -> None:
    # pip takes a platform by its word: older ones than the root's C library must be named one by one.
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 16, -1)] + [f"manylinux2014_{machine}"]
    options = ["--quiet", "--no-compile", "--only-binary=:all:", f"--target={site}", f"--python-version={PYTHON}"]
    options += [f"--platform={platform}" for platform in platforms]
    apt.run([sys.executable, "-m", "pip", "install", *options, *requirements])


def compile_python(tree: Path, directories: Iterable[Path]) -> None:
    """Compiles a guest's Python here: there, without KVM, it is most of the time a program takes to start.

    The result is the same for every machine, but not for every Python: another one here does nothing for the guest's.
    """
    if "{}.{}".format(*sys.version_info) != PYTHON:
        return
    for directory in directories:
        # What does not compile is Python's own samples of bad syntax. The files never change: no stat to compare.
        compileall.compile_dir(
            directory, quiet=2, stripdir=tree, prependdir="/", maxlevels=99,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
