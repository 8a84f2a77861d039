"""A judge where there is neither BTF nor DWARF: the kernel's own headers, compiled to a vmlinux of structs alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ci import apt
from ci.apt import FetchError
from ci.debian import Package, parse_packages
from ci.fetch import Image
from ci.kernels import DEBIAN_ARCHITECTURES, Entry
from ci.offsetof import HEADERS
from ci.product import ProductError, catalogue, identity
from ci.tools import missing

log = logging.getLogger(__name__)

JUDGE = "headers"
TOOLS = ("gcc", "dpkg-deb")
# Goes into the key: to be raised when this module makes something else out of the same inputs.
RECIPE = 1
_ARCH = {"x86_64": "x86"}
_INCLUDE = ("arch/{arch}/include", "arch/{arch}/include/generated", "include", "arch/{arch}/include/uapi",
            "arch/{arch}/include/generated/uapi", "include/uapi", "include/generated/uapi")
# Before all else, as the kernel's Makefile has them; the second is there from 4.15 on.
_FIRST = ("include/linux/kconfig.h", "include/linux/compiler_types.h")
# What decides of layouts as the kernel was compiled, and what a compiler of today needs for headers of 2016. A jump
# label's key has members only where the compiler has asm goto, which up to 4.20 the Makefile tells.
_FLAGS = ("-std=gnu89", "-w", "-O2", "-g", "-m64", "-mcmodel=kernel", "-mno-sse", "-mno-red-zone", "-fno-pie",
          "-fshort-wchar", "-fno-strict-aliasing", "-fno-common", "-ffreestanding", "-nostdlib", "-static",
          "-D__KERNEL__", '-DKBUILD_MODNAME="layout"', '-DKBUILD_BASENAME="layout"', "-DCC_HAVE_ASM_GOTO",
          "-DCONFIG_AS_CFI=1")
# What inline functions would call is nowhere, and nobody runs it.
_LINK = ("-Wl,--unresolved-symbols=ignore-all", "-Wl,--entry=0", "-Wl,--no-warnings")
_ERROR = re.compile(r".*\berror: .*")
_DEADLINE_S = 120.0
_DEPENDS = re.compile(r"linux-[\w.+-]*headers-[\w.+-]+")


def with_headers(entry: Entry, image: Image, cache: Path) -> Image:
    """The image with a vmlinux made of its headers; with a note instead where they cannot be had or compiled.

    It says the kernel's own banner and build-id, so what reads a vmlinux takes it for one whose code was left out.
    """
    architecture = DEBIAN_ARCHITECTURES[entry.machine]
    try:
        who = identity(image.vmlinuz)
        source = layout_source(catalogue(), who["version"] or "")
        key = _key(source, who)
        vmlinux = cache / "headers" / f"vmlinux-{image.release}_{image.version}_{architecture}-{key}"
        with apt.lock(cache):
            if not vmlinux.is_file():
                _make(entry, image, cache, vmlinux, source, who["build_id"])
    except (FetchError, ProductError) as error:
        return replace(image, notes=(*image.notes, f"no layout from headers: {error}"))
    return replace(image, vmlinux=vmlinux, judge=JUDGE)


def layout_source(fields: Iterable[str], banner: str) -> str:
    """C that has every struct of the fields (``STRUCT.MEMBER``) in its debug information."""
    structs = dict.fromkeys(name.partition(".")[0] for name in fields)
    lines = [f"#include <{header}>" for header in HEADERS]
    lines += [f"struct {name} *kcompat_{name};" for name in structs]
    return "\n".join([*lines, f"const char kcompat_banner[] = {json.dumps(banner)};", ""])


def compile_layout(tree: Path, machine: str, source: str, build_id: str | None, vmlinux: Path) -> None:
    """Compiles it against the headers at ``tree`` (/usr/src/linux-headers-RELEASE). Raises FetchError."""
    if reason := missing(TOOLS):
        raise FetchError(reason)
    code = vmlinux.with_suffix(".c")
    code.write_text(source)
    included = apt.run(["gcc", "-print-file-name=include"]).strip()
    where = [part for path in _INCLUDE for part in ("-I", path.format(arch=_ARCH[machine]))]
    first = [part for path in _FIRST if (tree / path).is_file() for part in ("-include", path)]
    named = [f"-Wl,--build-id=0x{build_id}" if build_id else "-Wl,--build-id=none"]
    command = ["gcc", "-nostdinc", "-isystem", included, *where, *first, *_FLAGS, *_LINK, *named, "-o", str(vmlinux),
               str(code)]
    try:
        done = subprocess.run(command, cwd=tree, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                              env={**os.environ, "LC_ALL": "C"}, timeout=_DEADLINE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"its headers do not compile: {error}") from error
    if done.returncode:
        said = _ERROR.search(done.stderr)
        raise FetchError(f"its headers do not compile: {said[0] if said else done.stderr.strip()[-500:]}")


def _key(source: str, who: Mapping[str, str | None]) -> str:
    compiler = apt.run(["gcc", "--version"]).partition("\n")[0]
    content = [RECIPE, source, who["build_id"], compiler, _FLAGS]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _make(entry: Entry, image: Image, cache: Path, vmlinux: Path, source: str, build_id: str | None) -> None:
    vmlinux.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=vmlinux.parent) as temporary:
        work = Path(temporary)
        trees = unpack_headers(entry, image, cache, work)
        compile_layout(trees / f"linux-headers-{image.release}", entry.machine, source, build_id, work / "vmlinux")
        (work / "vmlinux").rename(vmlinux)
    log.info("compiled the structs of %s out of its headers", image.release)


def unpack_headers(entry: Entry, image: Image, cache: Path, work: Path) -> Path:
    """Downloads the kernel's headers into ``work``; gives what holds their trees. Raises FetchError.

    The caller holds the cache's lock.
    """
    architecture = DEBIAN_ARCHITECTURES[entry.machine]
    for suite, package in _packages(entry, image, architecture, cache):
        deb = apt.download(package, suite, architecture, cache, work)
        apt.run(["dpkg-deb", "-x", str(deb), str(work / "x")])
    return work / "x/usr/src"


def _packages(entry: Entry, image: Image, architecture: str, cache: Path) -> Iterator[tuple[str, Package]]:
    """The headers of just this build, and the package with what is the same for all flavours, which they depend on."""
    name = f"linux-headers-{image.release}"
    for suite in entry.suites:
        packages = {p.name: p for p in parse_packages(apt.index(suite, architecture, cache), _DEPENDS)
                    if p.version == image.version}
        if name in packages:
            needed = [name, *(part for part in _DEPENDS.findall(packages[name].depends) if part in packages)]
            yield from ((suite, packages[part]) for part in needed)
            return
    raise FetchError(f"{', '.join(entry.suites)} have no {name} {image.version}")
