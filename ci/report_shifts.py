"""Every field's offset across kernels, each kernel beside the one it is compared with: what the picture shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ci.report_facts import judged, place
from ci.results import FieldResult, KernelResult

GENERIC = "generic"


@dataclass(frozen=True)
class Column:
    """A kernel and its reference: the kernel whose layout it would have if nothing had moved."""

    kernel: KernelResult
    reference: KernelResult | None
    section: str
    first: bool
    """Whether a section starts with it."""


@dataclass(frozen=True)
class Cell:
    """A field on a kernel. `place` is where it is by the judges, else by the guess; `delta` against the reference."""

    kind: str
    """same, moved, new (the reference has none), first (nothing to compare with), absent, wrong, ambiguous, unknown,
    unasked or lost (of this kernel nothing is known)."""
    place: int | None = None
    delta: int | None = None
    field: FieldResult | None = None


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Cell, ...]

    @property
    def struct(self) -> str:
        return self.name.partition(".")[0]

    @property
    def member(self) -> str:
        return self.name.partition(".")[2] or self.name

    @property
    def moves(self) -> bool:
        """Whether it is worth a look: it is not the same wherever it was looked for."""
        kinds = {cell.kind for cell in self.cells} - {"unasked", "lost"}
        return bool(kinds & {"moved", "new", "wrong", "ambiguous", "unknown"}) or ("absent" in kinds and len(kinds) > 1)


@dataclass(frozen=True)
class Picture:
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    """Structs in the order of the catalogue, each with its fields."""

    @property
    def rows(self) -> list[Row]:
        return [row for _, rows in self.groups for row in rows]

    def moved(self, index: int) -> list[tuple[Row, Cell]]:
        return [(row, row.cells[index]) for row in self.rows if row.cells[index].delta]


def picture(kernels: Sequence[KernelResult]) -> Picture:
    columns = _columns(kernels)
    by_kernel = {kernel.name: {field.name: field for field in kernel.fields} for kernel in kernels}
    # A dict keeps the order of the kernel that names a field first, and that is the catalogue's.
    names = dict.fromkeys(field.name for kernel in kernels for field in kernel.fields)
    groups: dict[str, list[Row]] = {}
    for name in names:
        row = Row(name, tuple(_cell(name, column, by_kernel) for column in columns))
        groups.setdefault(row.struct, []).append(row)
    return Picture(tuple(columns), tuple((struct, tuple(rows)) for struct, rows in groups.items()))


def _cell(name: str, column: Column, by_kernel: dict[str, dict[str, FieldResult]]) -> Cell:
    fields = by_kernel[column.kernel.name]
    field = fields.get(name)
    if field is None:
        return Cell("unasked" if fields else "lost")
    before = by_kernel[column.reference.name].get(name) if column.reference else None
    here, there = place(field), place(before) if before else None
    delta = here - there if here is not None and there is not None else None
    kind = judged(field)
    if kind != "right":
        return Cell(kind, here, delta, field)
    if here is None:
        return Cell("absent", None, None, field)
    if delta is None:
        # Where the reference could not be told, neither can whether it is new.
        return Cell("new" if before and judged(before) == "right" else "first", here, None, field)
    return Cell("moved" if delta else "same", here, delta, field)


def _columns(kernels: Sequence[KernelResult]) -> list[Column]:
    """Generic kernels each beside the one before; every other kernel beside the generic one of its version.

    In one line, 5.10's rt between 5.10 and 6.1 would show each of its shifts twice: on the way there and back.
    """
    usable = [kernel for kernel in kernels if kernel.fields]
    generic = [kernel for kernel in usable if _section(kernel) == GENERIC]
    sections: dict[str, list[Column]] = {GENERIC: []}
    for kernel in kernels:
        section = _section(kernel)
        if section == GENERIC:
            before = generic[: generic.index(kernel)] if kernel in generic else []
            reference = before[-1] if before else None
        else:
            reference = _relative(kernel, usable, generic)
        columns = sections.setdefault(section, [])
        columns.append(Column(kernel, reference, section, first=not columns))
    return [column for columns in sections.values() for column in columns]


def _section(kernel: KernelResult) -> str:
    if kernel.origin == "built":
        return "our own"
    if kernel.origin == "given":
        return "yours"
    return kernel.flavour if kernel.machine == "x86_64" else kernel.machine


def _relative(
    kernel: KernelResult, usable: Sequence[KernelResult], generic: Sequence[KernelResult]
) -> KernelResult | None:
    """The generic kernel of the same version; failing that, the first kernel of its section with that version."""
    peers = [k for k in usable if _section(k) == _section(kernel)]
    same = [k for k in (*generic, *peers) if _version(k) == _version(kernel) and k is not kernel]
    return next((k for k in same if k in generic or peers.index(k) < _position(kernel, peers)), None)


def _position(kernel: KernelResult, peers: Sequence[KernelResult]) -> int:
    return peers.index(kernel) if kernel in peers else len(peers)


def _version(kernel: KernelResult) -> str:
    """``6.12`` of ``6.12.48+deb13-amd64``; of the name, where it never said its release."""
    found = re.search(r"\d+\.\d+", kernel.release or kernel.name)
    return found[0] if found else kernel.name
