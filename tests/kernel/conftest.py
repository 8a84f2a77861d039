"""Everything here needs root and a kernel that loads BPF: else skipped, or failed where a kernel is required."""

import errno
import json
import os
import random
import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from guessers.guess import guess
from guessers.memory import KernelMemory, compiled
from kcompat.bpf import Object
from kcompat.btf import BtfResolver
from kcompat.errors import KcompatError
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.load import Loaded
from kcompat.maps import MapSpec
from kcompat.offsets import Offset, Offsets, State, Verdict
from kcompat.version import running_version_code
from tests.kernel import signs

HERE = Path(__file__).parent
ALL_THOROUGH = re.compile(r"^pytestmark = .*\bthorough\b", re.M)
REQUIRED = os.environ.get("KCOMPAT_REQUIRE_KERNEL") == "1"


def pytest_ignore_collect(collection_path, config):
    """Of what is left out whole not even the modules are read: emulated, what they import takes half a minute."""
    if config.option.markexpr == "not thorough" and collection_path.suffix == ".py":
        return ALL_THOROUGH.search(collection_path.read_text()) is not None or None
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kernel)


def cannot(reason):
    """Skips, or fails where KCOMPAT_REQUIRE_KERNEL=1 says that this kernel can."""
    if REQUIRED:
        pytest.fail(f"required here (KCOMPAT_REQUIRE_KERNEL=1), but {reason}")
    pytest.skip(reason)


def needs(trial):
    """Skips where the kernel knows no such thing, as one of `probe` finds it: that is EINVAL, all else is a fault."""
    try:
        trial()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip(f"this kernel has nothing of the kind: {trial.__name__}")


def wires_and(*programs):
    """For tests that run these programs on a wire between namespaces: skips, or fails, as `cannot`, where they lack."""
    if missing := [name for name in programs if not shutil.which(name)]:
        cannot(f"not installed: {', '.join(missing)} (make packages-dev)")
    if not signs.NET_NS:
        pytest.skip("this kernel has no network namespaces")


@cache
def obstacle():
    """Why no BPF program can be loaded; None when one can."""
    if os.geteuid() != 0:
        return "not root"
    try:
        Loaded(Object((), (MapSpec("one", 1, 4, 8, 1),), "GPL"), version_code()).close()
    except (KcompatError, OSError) as error:
        return f"BPF is refused: {error}"
    return None


def version_code():
    return running_version_code(Kernel.running().release)


@cache
def backend_obstacle(backend):
    """Why the guess cannot work through this backend alone."""
    try:
        KernelMemory(compiled(version_code()), (backend,)).close()
    except KcompatError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def bpf():
    """The one gate of all tests here."""
    if reason := obstacle():
        cannot(reason)


@pytest.fixture(scope="session")
def oracle():
    """What BTF says, an authority the guess never asks; without BTF, what KCOMPAT_ORACLE has of DWARF.

    KCOMPAT_ORACLE names what `kcompat resolve --source dwarf --vmlinux FILE --json` printed for this kernel.
    """
    try:
        return Offsets(BtfResolver().resolve(Kernel.running(), CATALOGUE))
    except KcompatError as error:
        if path := os.environ.get("KCOMPAT_ORACLE"):
            return read_oracle(Path(path), Kernel.running().build_id)
        return cannot(f"there is no BTF to compare with, and no KCOMPAT_ORACLE: {error}")


def read_oracle(path, build_id):
    """Offsets of the JSON that `kcompat resolve` prints. Another kernel's are refused: they would judge wrongly."""
    told = json.loads(path.read_text())
    if told["kernel"]["build_id"] != build_id:
        raise ValueError(f"{path} is of kernel {told['kernel']['build_id']}, and {build_id} is running")
    return Offsets(Offset(find(f"{a['struct']}.{a['member']}"), State(a["state"]), a["source"], a["offset"], a["width"],
                          a["bit_offset"], verdict=Verdict(a["verdict"]), reason=a["reason"]) for a in told["fields"])


@pytest.fixture(scope="session")
def guessed():
    """One guess, and what the kernel said while it was made."""
    with open("/dev/kmsg", "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as log:
        os.lseek(log.fileno(), 0, os.SEEK_END)
        found, said = guess(), []
        # None: there is no more.
        while (line := log.read(8192)) is not None:
            said.append(line)
    return found, said


@pytest.fixture
def rng(request):
    """Random, and the same again when a failed test is run alone."""
    return random.Random(request.node.nodeid)
