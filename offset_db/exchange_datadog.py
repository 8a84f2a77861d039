"""DataDog's constants: offsets of thousands of kernels by release, distribution and machine, without build-ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

from kcompat.errors import BadInput, KcompatError
from kcompat.fields import find
from kcompat.offsets import Offset
from kcompat.version import release_version
from offset_db.exchange_names import arch, distribution, named_kernel, text_of
from offset_db.queries import chosen
from offset_db.rows import Remembered, Stored

SOURCE = "datadog"

# (constant, field, how far the field lies behind the constant, its path there): their names and ours, in both
# directions. union flowi_uli has begun with dport, sport since it came to be (2.6.39). struct ns_common has had its
# inum behind two pointers from 3.19 (kernel commit 435d5f4bb2cc) until 6.18; theirs are of kernels before 6.0.
_CONSTANTS = tuple((constant, find(name), delta, path) for constant, name, delta, path in (
    ("sock_common_skc_family_offset", "sock_common.skc_family", 0, "skc_family"),
    ("sock_common_skc_net_offset", "sock_common.skc_net", 0, "skc_net.net"),
    ("flowi4_saddr_offset", "flowi4.saddr", 0, "saddr"),
    ("flowi4_uli_offset", "flowi4.dport", 0, "uli.ports.dport"),
    ("flowi4_uli_offset", "flowi4.sport", 2, "uli.ports.sport"),
    ("flowi6_saddr_offset", "flowi6.saddr", 0, "saddr"),
    ("flowi6_uli_offset", "flowi6.dport", 0, "uli.ports.dport"),
    ("flowi6_uli_offset", "flowi6.sport", 2, "uli.ports.sport"),
    ("net_ns_offset", "net.ns.inum", 16, "ns.inum"),
    ("net_proc_inum_offset", "net.ns.inum", 0, "proc_inum"),
))
_TWICE = {field for field, count in Counter(field for _, field, _, _ in _CONSTANTS).items() if count > 1}
_NS_COMMON_CHECKED_UP_TO = release_version("6.0")


def parse(text: str, path: str | PathLike[str], at: str) -> Iterator[Remembered]:
    """What the file says of each kernel, recorded `at`. Raises BadInput for a file of another shape."""
    try:
        document = json.loads(text)
        sets, kernels = document["constants"], document["kernels"]
        for row in kernels:
            release, name, version, machine = (text_of(row[n]) for n in ("uname_release", "distrib", "version", "arch"))
            kernel = named_kernel(release, "-".join(filter(None, (name, version))), machine)
            answers = tuple(Stored(o, at) for o in _offsets(release, sets[_index(row["cindex"])]))
            yield Remembered(kernel, at, at, answers)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise BadInput(path, f"not DataDog's constants: {type(error).__name__} {error}") from error


def render(remembered: Iterable[Remembered]) -> str:
    """The kernels in DataDog's form; sets of constants that are the same are written once, as they do."""
    sets: dict[str, int] = {}
    kernels = []
    for r in remembered:
        if constants := _constants(r):
            index = sets.setdefault(json.dumps(constants, sort_keys=True), len(sets))
            name, _, version = distribution(r.kernel).partition("-")
            kernels.append({"distrib": name, "version": version, "arch": arch(r.kernel.machine),
                            "uname_release": r.kernel.release, "cindex": index})
    kernels.sort(key=lambda k: (k["distrib"], k["version"], k["arch"], k["uname_release"]))
    return json.dumps({"constants": [json.loads(one) for one in sets], "kernels": kernels}, indent="\t") + "\n"


def _index(value: Any) -> int:
    """Python takes -1 for the last one, and true for the second."""
    if type(value) is not int or value < 0:
        raise ValueError(f"cindex {value!r}")
    return value


def _offsets(release: str, constants: dict[str, Any]) -> Iterator[Offset]:
    for constant, field, delta, path in _CONSTANTS:
        value = constants.get(constant)
        if value is None or not _holds(constant, release):
            continue
        if type(value) is not int or not 0 <= value < 1 << 16:
            raise ValueError(f"{constant} {value!r} of {release}")
        yield Offset.known(field, value + delta, SOURCE, evidence={"constant": constant, "path": path})


def _constants(remembered: Remembered) -> dict[str, int]:
    found = chosen(remembered)
    constants: dict[str, int] = {}
    for constant, field, delta, path in _CONSTANTS:
        answer = found.get(field)
        if answer is None or answer.offset is None or not _holds(constant, remembered.kernel.release):
            continue
        # Where a field is behind either of two constants, only its path tells which; a guess does not know it.
        if field not in _TWICE or answer.evidence.get("path") == path:
            constants.setdefault(constant, answer.offset - delta)
    return constants


def _holds(constant: str, release: str) -> bool:
    if constant != "net_ns_offset":
        return True
    try:
        return release_version(release) < _NS_COMMON_CHECKED_UP_TO
    except KcompatError:
        return False
