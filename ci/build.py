"""Builds a kernel of our own from Debian's source, once per content: complete in the cache, or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ci import apt, kconfig, offsetof
from ci.apt import FetchError, GoneError
from ci.fetch import Image
from ci.kernels import Built
from ci.product import ProductError, catalogue
from ci.source import Source, candidates, unpack
from ci.tools import find_tool, missing, tool_path

log = logging.getLogger(__name__)

TOOLS = ("make", "gcc", "g++", "ld", "flex", "bison", "bc", "xz", "setpriv", "timeout")
FRAGMENTS = Path(__file__).parent / "fragments"
LAYOUT = "layout.json"
# Goes into the key: to be raised when this module makes something else out of the same inputs.
RECIPE = 1
BUILD_DEADLINE_S = 5400.0
_TIMED_OUT = 124  # timeout(1)
_ERROR = re.compile(r"\berror:|\*\*\*|undefined reference")
# A kernel whose sources, fragments, seed and compiler are the same is the same kernel, whenever and wherever built.
REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "kcompat",
    "KBUILD_BUILD_HOST": "kcompat",
    "KBUILD_BUILD_VERSION": "1",
}


class BuildError(FetchError):
    """A kernel of our own could not be built; the message says what it broke on."""


def build(entry: Built, cache: Path, progress: Callable[[str], None] = lambda text: None) -> Image:
    """The kernel out of the cache, or built into it: minutes. Another process that builds the same is waited for."""
    requested = configuration(entry.fragments, FRAGMENTS)
    compiler = _first_line(["gcc", "--version"])
    notes: list[str] = []
    for source in candidates(entry, cache):
        key = content_key(entry, source, requested, compiler)
        directory = cache / "kernels" / f"{source.package.name}_{source.package.version}_{entry.name}_{key}"
        try:
            with apt.lock(cache / "locks", directory.name, BUILD_DEADLINE_S):
                if not directory.is_dir():
                    _require_tools()
                    unpack(source, entry.machine, cache)
                    _install(entry, source, requested, key, directory, cache, progress)
        except GoneError as error:
            notes.append(str(error))
            log.info("%s; trying the next source", error)
            continue
        (vmlinuz,) = directory.glob("boot/vmlinuz-*")
        release = vmlinuz.name.removeprefix("vmlinuz-")
        package = source.package
        layout = directory / LAYOUT
        return Image(package.name, package.version, release, vmlinuz, tuple(notes), directory / "vmlinux",
                     layout if layout.exists() else None)
    raise BuildError(f"no source of {entry.name} is to be had: {'; '.join(notes)}")


def configuration(fragments: Sequence[str], directory: Path) -> dict[str, str]:
    """What the fragments ask for; of two that disagree the later one wins."""
    parsed = []
    for name in fragments:
        path = directory / f"{name}.config"
        try:
            parsed.append(kconfig.parse(path.read_text()))
        except OSError as error:
            raise BuildError(f"cannot read fragment {path}: {error.strerror}") from error
        except ValueError as error:
            raise BuildError(f"fragment {path}: {error}") from error
    return kconfig.merge(parsed)


def content_key(entry: Built, source: Source, requested: Mapping[str, str], compiler: str) -> str:
    """The same for the same kernel, another for any other: a change of any input is a new build."""
    # Of shuffled structs the compiler is asked too (ci.offsetof).
    recipe = [RECIPE, offsetof.RECIPE] if entry.seed else RECIPE
    content = [recipe, source.package.name, source.package.version, sorted(requested.items()), entry.seed, compiler]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _require_tools() -> None:
    if reason := missing(TOOLS):
        raise BuildError(f"{reason}; `make matrix` installs what a kernel build needs")


def _first_line(command: Sequence[str]) -> str:
    return apt.run(command).partition("\n")[0]


def _install(
    entry: Built,
    source: Source,
    requested: Mapping[str, str],
    key: str,
    directory: Path,
    cache: Path,
    progress: Callable[[str], None],
) -> None:
    """Builds in a directory of its own beside the source, which is only read, and moves what is kept into place."""
    begun = time.monotonic()
    directory.parent.mkdir(parents=True, exist_ok=True)
    logs = cache / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory.parent) as temporary:
        output, kernel = Path(temporary) / "output", Path(temporary) / "kernel"
        make = Make(source.tree, output, cache, logs / f"build-{entry.name}.log", progress)
        configure(make, requested)
        settings = plant_seed(source.tree, output, entry.seed) if entry.seed else []
        settings.append(f"LOCALVERSION=-{entry.name.partition('-')[2]}-{key}")
        make(*settings, f"-j{os.cpu_count() or 1}", "bzImage", "vmlinux")
        release = (output / "include/config/kernel.release").read_text().strip()
        (kernel / "boot").mkdir(parents=True)
        shutil.move(output / "arch/x86/boot/bzImage", kernel / f"boot/vmlinuz-{release}")
        shutil.move(output / "vmlinux", kernel / "vmlinux")
        shutil.move(output / ".config", kernel / "config")
        if entry.seed:
            offsetof.save(_layout(output), kernel / LAYOUT)
        (kernel / "build.json").write_text(json.dumps({"seconds": round(time.monotonic() - begun, 1)}))
        kernel.rename(directory)
    log.info("built %s in %.0f s", release, time.monotonic() - begun)


def _layout(output: Path) -> offsetof.Layout:
    try:
        return offsetof.ask(catalogue(), output)
    except (ProductError, offsetof.UnaskedError) as error:
        raise BuildError(f"the compiler does not say where fields lie: {error}") from error


def configure(make: Make, requested: Mapping[str, str]) -> None:
    """Nothing but what is requested and what that needs. Raises BuildError if kconfig did not grant all of it."""
    make.output.mkdir(parents=True)
    wish = make.output / "requested.config"
    wish.write_text(kconfig.render(requested))
    make(f"KCONFIG_ALLCONFIG={wish}", "allnoconfig")
    refused = kconfig.unmet(requested, kconfig.parse((make.output / ".config").read_text()))
    if refused:
        raise BuildError("; ".join(refused))


def plant_seed(tree: Path, output: Path, seed: str) -> list[str]:
    """Makes RANDSTRUCT shuffle the same way each time; returns what make must be told for it."""
    number = hashlib.sha256(seed.encode()).hexdigest()
    hashed = hashlib.sha256(number.encode()).hexdigest()
    define = f'#define RANDSTRUCT_HASHED_SEED "{hashed}"\n'
    if (tree / "scripts/gcc-plugins/gen-random-seed.sh").exists():
        # Up to 5.18 a seed that is there is kept.
        for path, text in (
            ("scripts/gcc-plugins/randomize_layout_seed.h", f'const char *randstruct_seed = "{number}";\n'),
            ("include/generated/randomize_layout_hash.h", define),
        ):
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            (output / path).write_text(text)
        return []
    # Since then (kernel commit be2b34fa9be3) it is made anew, by a script that a variable names.
    script = output / "seed.sh"
    script.write_text(f"echo {number} >\"$1\"\nprintf '%s' '{define}' >\"$2\"\n")
    return [f"gen-randstruct-seed={script}"]


class Make:
    """The kernel's make for one output directory; all it says goes to the log."""

    def __init__(
        self, tree: Path, output: Path, cache: Path, log_path: Path, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        self.tree = tree
        self.output = output
        self.cache = cache
        self.log_path = log_path
        self.progress = progress
        log_path.write_bytes(b"")

    def __call__(self, *arguments: str) -> None:
        """Raises BuildError if make fails or does not end in time; it and all its children are gone afterwards."""
        # The builds of a matrix share most of what they compile.
        compiler = ["CC=ccache gcc"] if find_tool("ccache") else []
        make = ["make", "-C", str(self.tree), f"O={self.output}", *compiler, *arguments]
        # Should we be killed outright, setpriv has the kernel end timeout, and timeout ends its whole group.
        # A VM beside us has a deadline, a build has time.
        command = ["setpriv", "--pdeathsig", "TERM", "timeout", "-k", "5", f"{BUILD_DEADLINE_S:.0f}",
                   "nice", "-n", "10", *make]
        environment = {
            **os.environ,
            **REPRODUCIBLE,
            "LC_ALL": "C",
            "PATH": tool_path(),
            "CCACHE_DIR": str(self.cache / "ccache"),
            "CCACHE_MAXSIZE": "3G",
            # The output directory has another name each time, and is named in DWARF only.
            "CCACHE_NOHASHDIR": "1",
        }
        with self.log_path.open("ab") as log_file:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self.progress(f"{self._tail(200)[-1]}\n")
                time.sleep(0.2)
        finally:
            # The group is killed before its leader is reaped: until then its number cannot be anyone else's.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            raise BuildError(f"make {arguments[-1]}: {self._why(process.returncode)}; all of it: {self.log_path}")

    def _why(self, status: int) -> str:
        if status == _TIMED_OUT:
            return f"did not end within {BUILD_DEADLINE_S:.0f} s"
        lines = self._tail(20_000)
        return next((line for line in lines if _ERROR.search(line)), lines[-1])

    def _tail(self, size: int) -> list[str]:
        """The last lines of the log; at least one, if only an empty one."""
        with self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - size))
            return file.read().decode(errors="replace").splitlines() or [""]
