"""`netflow_overhead` in a kernel that has kprobes, in QEMU: what netflow costs there, beside bcc's own tools.

``python -m benchmarks.netflow_overhead_guest``. bcc compiles its tools with the kernel's own headers, which are
downloaded; the tools and iperf3 are this machine's, with the libraries they load. Emulated, no time is the hardware's:
what counts is how those compare that ran in the same guest.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from ci import apt
from ci.apt import FetchError
from ci.disk import NOT_FOR_GUESTS
from ci.fetch import cache_dir, fetch
from ci.headers import unpack_headers
from ci.job import Job
from ci.kernels import MATRIX, Entry, select
from ci.matrix import GUEST_ENVIRONMENT, REPOSITORY, run_command
from ci.verdict import Outcome

_TOOLS = ("bpftrace", "iperf3", "tcplife-bpfcc", "tcptop-bpfcc")
_LIBRARY = re.compile(r"=> (/\S+)")
# Of the C library and what is one with it, the guest has its own.
_LIBC = re.compile(r"lib(c|m|dl|rt|pthread|resolv)\.so|ld-linux")
_STREAM_MB_A_SECOND = 100  # what an emulated loopback moves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-k", "--kernel", default="5.10", help="a kernel of the matrix (default: 5.10)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--deadline", type=float, default=3600.0, help="seconds until the guest is given up")
    told = parser.parse_args()
    (entry,) = select(told.kernel, MATRIX)
    try:
        sys.exit(_run(entry, told.rounds, told.seconds, told.deadline))
    except FetchError as error:
        sys.exit(f"netflow_overhead_guest: {error}")


def _run(entry: Entry, rounds: int, seconds: float, deadline_s: float) -> int:
    with tempfile.TemporaryDirectory(prefix="kcompat-bench-") as directory:
        tree = Path(directory) / "kcompat"
        shutil.copytree(REPOSITORY, tree, symlinks=True, ignore=NOT_FOR_GUESTS)
        brought = tree / "brought"
        _bring_tools(brought)
        _bring_headers(entry, Path(directory), brought / "headers")
        environment = {**GUEST_ENVIRONMENT, "PATH": f"{brought}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                       "LD_LIBRARY_PATH": f"{brought}/lib", "BCC_KERNEL_SOURCE": f"{brought}/headers",
                       "KCOMPAT_CACHE": "/run/kcompat-cache"}
        command = (sys.executable, "-m", "benchmarks.netflow_overhead", "--rounds", str(rounds), "--seconds",
                   str(seconds), "--stream-mb-a-second", str(_STREAM_MB_A_SECOND))
        result = run_command(entry, Job(command, tree, deadline_s, environment, memory="3G"),
                             Path(directory) / "console.log", lambda phase, text: print(text, end="", flush=True))
    if result.outcome is not Outcome.PASS:
        print(f"{entry.name}: {result.outcome.value}: {result.reason}", file=sys.stderr)
    return 0 if result.outcome is Outcome.PASS else 1


def _bring_tools(into: Path) -> None:
    """Those this machine has; without the others there are fewer rivals. Raises FetchError."""
    (into / "bin").mkdir(parents=True)
    (into / "lib").mkdir()
    for tool in _TOOLS:
        path = shutil.which(tool)
        if path is None:
            print(f"{tool} is not installed here: apt-get install bpftrace bpfcc-tools iperf3", file=sys.stderr)
            continue
        shutil.copy2(path, into / "bin" / tool)
        if Path(path).read_bytes()[:4] == b"\x7fELF":
            for library in _LIBRARY.findall(apt.run(["ldd", path])):
                if not _LIBC.match(Path(library).name):
                    shutil.copy2(library, into / "lib")


def _bring_headers(entry: Entry, work: Path, into: Path) -> None:
    """What Debian keeps in two trees, the flavour's and that of all flavours, in one. Raises FetchError."""
    cache = cache_dir()
    image = fetch(entry, cache)
    with apt.lock(cache):
        trees = unpack_headers(entry, image, cache, work)
    for tree in sorted(trees.iterdir()):
        for part in ("arch", "include"):
            if (tree / part).is_dir():
                shutil.copytree(tree / part, into / part, symlinks=True, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
