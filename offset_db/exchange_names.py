"""Kernels known by name only, where nobody wrote down a build-id, and which distribution built a kernel."""

from __future__ import annotations

import re

from kcompat.kernel import Kernel

# A key that begins so says that release, distribution and machine are all that is known of the build. A running
# kernel always has a better key, so what is kept under such a one is looked at and compared, and never answers.
NAMED = "release-"

# As DataDog, BTFHub and Debian spell machines -> uname(2).
MACHINES = {"arm64": "aarch64", "aarch64": "aarch64", "amd64": "x86_64", "x86_64": "x86_64"}
_SPELT_BY_OTHERS = {"aarch64": "arm64"}

# In the release or the banner of /proc/version; the first that is found decides, so derivatives come first.
_SIGNS = (
    (r"amzn", "amzn"), (r"\.el\d.*uek|uek", "ol"), (r"Rocky Linux", "rocky"), (r"AlmaLinux", "almalinux"),
    (r"\.(?:oe|ky)\d|bclinux", "openeuler"), (r"\.el\d", "centos"), (r"\.fc\d", "fedora"), (r"Ubuntu", "ubuntu"),
    (r"Debian", "debian"), (r"SUSE|-default$", "suse"), (r"[-.]arch\d", "arch"),
    (r"-(?:generic|lowlatency|aws|azure|gcp|gke|oracle|kvm)$", "ubuntu"),
    (r"-\d+(?:\.bpo\.\d+)?(?:-cloud|-rt)?-(?:amd64|arm64)$", "debian"),
)


def named_kernel(release: str, distribution: str, machine: str) -> Kernel:
    """The kernel of that name; `distribution` with its version, as ``ubuntu-18.04``."""
    machine = MACHINES.get(machine, machine)
    return Kernel(f"{NAMED}{release}-{distribution}-{machine}", release, "", machine)


def distribution(kernel: Kernel) -> str:
    """``ubuntu-18.04`` where the key says so, ``ubuntu`` where release or banner give it away, else nothing."""
    start, end = f"{NAMED}{kernel.release}-", f"-{kernel.machine}"
    if kernel.key.startswith(start) and kernel.key.endswith(end):
        return kernel.key[len(start):-len(end)]
    told = f"{kernel.version}\n{kernel.release}"
    return next((name for sign, name in _SIGNS if re.search(sign, told, re.MULTILINE)), "")


def text_of(value: object) -> str:
    """What stands in a document as text. Raises TypeError for what is none, ValueError for half a surrogate pair.

    JSON can spell one, and SQLite takes none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    value.encode()
    return value


def arch(machine: str) -> str:
    """The machine as DataDog and BTFHub spell it."""
    return _SPELT_BY_OTHERS.get(machine, machine)
