"""Who else finds struct offsets in DWARF, each in a process of its own: its places, its time and its memory.

``python -m benchmarks.dwarf_rivals drgn VMLINUX`` prints {field: offset}.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY
from kcompat.errors import KcompatError, Missing
from kcompat.fields import CATALOGUE, Field, structs

_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one tool: wall and processor time, the most memory it had resident, and {field: offset}."""

    seconds: float
    cpu_s: float
    peak_mb: float
    places: Mapping[str, int]


def run(name: str, vmlinux: Path) -> Run:
    """Raises KcompatError when it fails or has no end."""
    if (ran := run_within(name, vmlinux, _PATIENCE_S)) is None:
        raise KcompatError(f"{name} on {vmlinux}: no end after {_PATIENCE_S:.0f} s")
    return ran


def run_within(name: str, vmlinux: Path, limit_s: float) -> Run | None:
    """None when it did not end in time. A process in between makes RUSAGE_CHILDREN that of this one run."""
    command = [sys.executable, "-m", "benchmarks.dwarf_rivals", "measure", name, str(vmlinux), str(limit_s)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        raise KcompatError(f"{name} on {vmlinux}: {words[-1]}")
    said: dict[str, Any] | None = json.loads(done.stdout)
    return None if said is None else Run(said["seconds"], said["cpu_s"], said["peak_mb"], said["places"])


def _measure(name: str, vmlinux: str, limit_s: str) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "benchmarks.dwarf_rivals", name, vmlinux]
    if name == "pahole":
        command = ["pahole", "-F", "dwarf", "-E", "-C", ",".join(structs()), vmlinux]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=float(limit_s))
    except FileNotFoundError as error:
        raise Missing(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired:
        return None
    seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    places = pahole_places(done.stdout) if name == "pahole" else json.loads(done.stdout)
    return {"seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024,
            "places": places}


def _ours(vmlinux: Path) -> dict[str, int]:
    from kcompat.dwarf import DwarfResolver
    from kcompat.kernel import Kernel

    answers = DwarfResolver(vmlinux).resolve(Kernel("", "", "", ""), CATALOGUE)
    return {a.field.name: a.offset for a in answers if a.offset is not None}


def _drgn(vmlinux: Path) -> dict[str, int]:
    import drgn

    program = drgn.Program()
    program.extra_module("vmlinux", create=True).try_file(vmlinux, force=True)
    return _first_paths(lambda field, path: int(drgn.offsetof(program.type(f"struct {field.struct}"), path)))


def _pyelftools(vmlinux: Path) -> dict[str, int]:
    """As one would write it first: every unit, every top-level entry, until all structs are there."""
    from elftools.elf.elffile import ELFFile

    with vmlinux.open("rb") as file:
        info = ELFFile(file).get_dwarf_info(relocate_dwarf_sections=False)
        missing, found = {name.encode() for name in structs()}, {}
        for unit in info.iter_CUs():
            for entry in unit.get_top_DIE().iter_children():
                name = entry.attributes.get("DW_AT_name")
                if entry.tag == "DW_TAG_structure_type" and name and name.value in missing \
                        and "DW_AT_declaration" not in entry.attributes:
                    found[name.value.decode()] = _members(entry)
                    missing.discard(name.value)
            if not missing:
                break
    return _first_paths(lambda field, path: found[field.struct][path])


def _members(entry: Any, prefix: str = "", start: int = 0) -> dict[str, int]:
    """{dotted path: offset} through anonymous members and one level of named ones and deeper."""
    members = {}
    for child in entry.iter_children():
        if child.tag != "DW_TAG_member" or "DW_AT_data_bit_offset" in child.attributes:
            continue
        name = child.attributes["DW_AT_name"].value.decode() if "DW_AT_name" in child.attributes else ""
        place = child.attributes.get("DW_AT_data_member_location")
        at = start + (place.value if place else 0)
        members[prefix + name] = at
        below = child.get_DIE_from_attribute("DW_AT_type")
        while below.tag in ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type"):
            if "DW_AT_type" not in below.attributes:
                break
            below = below.get_DIE_from_attribute("DW_AT_type")
        if below.tag in ("DW_TAG_structure_type", "DW_TAG_union_type") and prefix.count(".") < 3:
            members |= _members(below, f"{prefix}{name}." if name else prefix, at)
    return members


def _first_paths(place: Callable[[Field, str], int]) -> dict[str, int]:
    """Each field's first path that is there."""
    places = {}
    for field in CATALOGUE:
        for path in field.paths:
            try:
                places[field.name] = place(field, path)
                break
            except LookupError:
                continue
    return places


def pahole_places(printed: str) -> dict[str, int]:
    """From ``pahole -E``, which prints nested structs in place, with offsets from the top."""
    found: dict[str, dict[str, int]] = {}
    open_blocks: list[dict[str, int]] = []
    for line in printed.splitlines():
        if line.rstrip().endswith("{"):
            if not open_blocks:
                found[line.split()[1]] = {}
            open_blocks.append({} if open_blocks else found[line.split()[1]])
        elif line.lstrip().startswith("}"):
            inner = open_blocks.pop()
            if open_blocks:
                open_blocks[-1].update(_below(line, inner) | _member_of(line))
        elif open_blocks:
            open_blocks[-1].update(_member_of(line))
    return _first_paths(lambda field, path: found[field.struct][path])


def _below(line: str, inner: Mapping[str, int]) -> dict[str, int]:
    """What a block holds, by paths from outside it: ``} tuplehash[2]; /* 16 112 */`` ends one printed but once."""
    told = re.match(r"\s*\}\s*(?:__attribute__\(\(.*?\)\)\s*)*(\w*)(?:\[(\d+)\];\s*/\*\s+\d+\s+(\d+) \*/)?", line)
    if not told or not told[1]:
        return dict(inner)
    if not told[2]:
        return {f"{told[1]}.{path}": at for path, at in inner.items()}
    count, size = int(told[2]), int(told[3])
    return {f"{told[1]}[{n}].{path}": at + size // count * n for n in range(count) for path, at in inner.items()}


def _member_of(line: str) -> dict[str, int]:
    """``struct socket * sk_socket; /* 624 8 */`` is a member; a bitfield has a place with a colon and is none here."""
    told = re.search(r"(\w+)\)?(?:\([^;]*\))?(?:\[\d+\])*(?: __attribute__\(\(.*?\)\))*;\s*/\*\s+(\d+)\s+\d+ \*/", line)
    return {told[1]: int(told[2])} if told else {}


PLACES: dict[str, Callable[[Path], dict[str, int]]] = {"ours": _ours, "drgn": _drgn, "pyelftools": _pyelftools}


def main(arguments: list[str]) -> None:
    found = _measure(*arguments[1:]) if arguments[0] == "measure" else PLACES[arguments[0]](Path(arguments[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KcompatError as error:
        sys.exit(str(error))
