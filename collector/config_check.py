"""What the types of the configuration cannot say: whether there is such a dataset, or such a kind of sink."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from collector.config_reading import BadConfig, Fault, read
from collector.config_types import Complaint
from collector.pipeline import DATASETS
from collector.sinks import check_sink, shared_spools
from kcompat.errors import KcompatError


def judge(tree: Mapping[str, Any]) -> Iterator[Complaint]:
    """For `config_reading.read`."""
    for at, name in _elements(tree, "datasets"):
        if isinstance(name, str) and name not in DATASETS:
            yield ("datasets", at), f"there is no dataset {name!r}: there is {', '.join(DATASETS)}"
    if tree.get("dns_percentiles") is True and not find_spec("ddsketch"):
        yield ("dns_percentiles",), "percentiles need DDSketch: pip install 'kcompat[percentiles]'"
    outputs = [(at, spec) for at, spec in _elements(tree, "outputs") if isinstance(spec, str | dict)]
    for at, spec in outputs:
        try:
            check_sink(spec)
        except KcompatError as error:
            yield ("outputs", at), str(error)
    for which, why in shared_spools(spec for _, spec in outputs):
        yield ("outputs", outputs[which][0]), why


def faults(file: Path, environment: Mapping[str, str]) -> tuple[Fault, ...]:
    """All that is wrong with a file. Raises KcompatError for one that cannot be read."""
    found: tuple[Fault, ...] = ()
    try:
        read(file, environment, judge=judge)
    except BadConfig as error:
        found = error.faults
    danger = exposure(file)
    return (*found, Fault(str(file), danger)) if danger else found


def _elements(tree: Mapping[str, Any], key: str) -> Iterator[tuple[int, Any]]:
    value = tree.get(key)
    return iter(enumerate(value if isinstance(value, list) else ()))


def exposure(file: Path) -> str | None:
    """Why a file that may hold tokens, and decides what root does, is not safe where it is; None if it is.

    Others must not write it. Reading it is their good right unless it has a password in a URL, which nobody can tell.
    """
    status = file.stat()
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others than its owner may write it: chmod go-w {file}"
    if os.geteuid() == 0 and status.st_uid != 0:
        return f"it is not root's, who runs kcompat: chown root {file}"
    return None
