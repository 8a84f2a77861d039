"""The marker of tests that boot QEMU, and the kernel they boot."""

import os

import pytest

from ci import kernels
from ci.apt import FetchError
from ci.disk import MACHINES, TOOLS
from ci.fetch import cache_dir, fetch
from ci.matrix import bootable
from ci.tools import missing


def pytest_configure(config):
    config.addinivalue_line("markers", "vm: boots a real kernel in QEMU")


@pytest.fixture(scope="session")
def kernel():
    """The oldest kernel of the matrix; only fetched over the network where kernels are required."""
    required = os.environ.get("KCOMPAT_REQUIRE_KERNEL") == "1"
    entry = kernels.select("5.10", kernels.MATRIX)[0]
    if not required and (reason := missing([*TOOLS, MACHINES["x86_64"].emulator])):
        pytest.skip(reason)
    if not required and not list(cache_dir().glob("kernels/linux-image-5.10*")):
        pytest.skip(f"no 5.10 kernel in {cache_dir()}; `python -m ci -k 5.10` fetches one")
    try:
        image = fetch(entry, cache_dir())
    except FetchError as error:
        if required:
            raise
        pytest.skip(str(error))
    return bootable(entry, image)
