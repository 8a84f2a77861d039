"""`kcompat info`: identity, capabilities, and which sources of offsets this machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kcompat.btf import RUNNING
from kcompat.capabilities import Can, Capabilities, Capability, probe_all
from kcompat.cli_output import STYLES, drawn, indented, to_json
from kcompat.errors import KcompatError
from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Info:
    kernel: Kernel
    capabilities: Capabilities
    sources: tuple[Capability, ...]


def look(db: Path | None) -> Info:
    """Looks at the machine; nothing is written, not even a database."""
    kernel = Kernel.running()
    capabilities = probe_all(kernel.release)
    return Info(kernel, capabilities, (_database(kernel, db), _btf(capabilities), _dwarf(kernel),
                                       _guess(capabilities)))


def info_json(info: Info) -> str:
    return to_json({"kernel": info.kernel.as_json() | {"modules": dict(info.kernel.modules)},
                    "capabilities": [c.as_json() for c in info.capabilities.values()],
                    "sources": [s.as_json() for s in info.sources]})


def info_text(info: Info) -> str:
    def draw(console: Console) -> None:
        from rich.table import Table
        from rich.text import Text

        for title, rows in (("capabilities", tuple(info.capabilities.values())), ("sources of offsets", info.sources)):
            console.print(Text(f"\n{title}", style="bold"))
            table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
            table.add_column(no_wrap=True, min_width=18)
            table.add_column(no_wrap=True, min_width=10)
            table.add_column(overflow="fold")
            for row in rows:
                table.add_row(f"  {row.name}", Text(row.state, STYLES[row.state]), Text(row.reason))
            console.print(table)

    missing = "".join(_advice(info))
    if missing:
        missing = f"\nwhat is missing, and how to get it\n{missing}"
    return _identity(info.kernel) + drawn(draw) + missing


def _identity(kernel: Kernel) -> str:
    build_id = kernel.build_id or f"none shown; known as {kernel.key}"
    return (f"release   {kernel.release}\nmachine   {kernel.machine}\nbuild-id  {build_id}\n"
            f"version   {kernel.version}\n")


def _advice(info: Info) -> Iterator[str]:
    for one in (*info.capabilities.values(), *info.sources):
        if one.state is not Can.YES and one.advice and not one.advice.startswith("nothing"):
            yield indented(f"{one.name}: {one.advice}")


def _database(kernel: Kernel, chosen: Path | None) -> Capability:
    from offset_db.db import Database
    from offset_db.files import default_path

    path = chosen or default_path()
    fill = "`kcompat resolve` or `sudo kcompat guess` fills it"
    try:
        if not path.exists():
            return Capability("db", Can.NO, f"{path} is not there yet", fill)
        with Database.open(path, read_only=True) as db:
            fields = {s.offset.field for s in db.offsets(kernel) if s.quarantined_at is None}
    except OSError as error:
        return Capability("db", Can.UNKNOWN, f"{path}: {error.strerror}", "run it as root, or name a file with --db")
    except KcompatError as error:
        return Capability("db", Can.NO, str(error), "the next command that writes it moves it aside")
    if not fields:
        return Capability("db", Can.NO, f"{path} holds nothing of this kernel", fill)
    return Capability("db", Can.YES, f"{len(fields)} of {len(CATALOGUE)} fields of this kernel in {path}")


def _btf(capabilities: Capabilities) -> Capability:
    own = capabilities["btf"]
    return Capability("btf", own.state, own.reason if own.state is not Can.YES else str(RUNNING), own.advice)


def _dwarf(kernel: Kernel) -> Capability:
    """Debug packages put a vmlinux in one of these places; asked for by name, it is never read unasked."""
    build_id = kernel.build_id or "none"
    for path in (Path(f"/usr/lib/debug/boot/vmlinux-{kernel.release}"),
                 Path(f"/usr/lib/debug/lib/modules/{kernel.release}/vmlinux"),
                 Path(f"/usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"),
                 Path(f"/lib/modules/{kernel.release}/build/vmlinux")):
        if path.exists():
            return Capability("dwarf", Can.YES, f"--vmlinux {path}")
    return Capability("dwarf", Can.NO, "no vmlinux with debug information in the usual places",
                      "the distribution's debug package of this kernel, and --vmlinux FILE")


def _guess(capabilities: Capabilities) -> Capability:
    """Needs programs, a hook of either kind, the right to read memory, and a compiler or what it compiled before."""
    reads = _either(capabilities, "probe_read", "probe_read_kernel")
    hooks = _either(capabilities, "kprobe", "raw_tracepoint")
    compiler = _either(capabilities, "bcc", "compiled_cache")
    needs = (("bpf", capabilities["bpf"].state), ("a way to read kernel memory", reads),
             ("kprobes or raw tracepoints", hooks), ("bcc", compiler))
    if lacking := [name for name, state in needs if state is Can.NO]:
        return Capability("guess", Can.NO, f"lacks {', '.join(lacking)}", "see above")
    if any(state is Can.UNKNOWN for _, state in needs):
        return Capability("guess", Can.UNKNOWN, "it cannot be tried like this",
                          "see above" if os.geteuid() == 0 else "run it as root")
    return Capability("guess", Can.YES, "kprobes" if capabilities.has("kprobe") else "raw tracepoints")


def _either(capabilities: Capabilities, *names: str) -> Can:
    states = {capabilities[name].state for name in names}
    return next(state for state in (Can.YES, Can.UNKNOWN, Can.NO) if state in states)
