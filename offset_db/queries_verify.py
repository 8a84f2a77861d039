"""What must hold of a database: the file is sound, and no kernel has a layout that no compiler could have made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from kcompat.errors import BadInput
from kcompat.fields import in_one_union, is_part
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from offset_db.db import Database
from offset_db.rows import Remembered

# Far above the largest struct we read of: task_struct is 14 KiB with everything switched on.
_LARGEST_STRUCT = 1 << 16
# Each struct begins with the one before it, so its own fields lie behind all of that one's.
_NESTED = ("sock_common", "sock", "inet_sock", "tcp_sock")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that cannot be; `kernel` is None for the file itself."""

    kernel: Kernel | None
    source: str
    fault: str


def verify(db: Database) -> list[Fault]:
    """What is wrong with the file, and with the layouts in it. Slow: it reads all of it."""
    return [*_file_faults(db), *(fault for kernel in db.kernels() for fault in _kernel_faults(db, kernel))]


def impossible(remembered: Remembered) -> Iterator[Fault]:
    """What no kernel can be like, source by source; refuted answers are not held against it."""
    known = [s.offset for s in remembered.stored if s.quarantined_at is None and s.offset.state is State.KNOWN]
    known.sort(key=lambda o: o.source)
    for source, offsets in groupby(known, key=lambda o: o.source):
        told = list(offsets)
        for fault in (*_misplaced(told), *_overlapping(told), *_misnested(told)):
            yield Fault(remembered.kernel, source, fault)


def _file_faults(db: Database) -> Iterator[Fault]:
    for row in db.read(lambda select: select("PRAGMA integrity_check")):
        if row["integrity_check"] != "ok":
            yield Fault(None, "", str(row["integrity_check"]))
    for row in db.read(lambda select: select("PRAGMA foreign_key_check")):
        yield Fault(None, "", f"table {row['table']}: a row of a kernel that is not there")


def _kernel_faults(db: Database, kernel: Kernel) -> Iterator[Fault]:
    try:
        for remembered in db.show(kernel.key):
            yield from impossible(remembered)
    # SQLite does not look at the CHECKs of a table without rowid: such a row is found by reading it.
    except BadInput as error:
        yield Fault(kernel, "unreadable", error.fault)


def _misplaced(offsets: Iterable[Offset]) -> Iterator[str]:
    for o in offsets:
        if not 0 <= _start(o) < _LARGEST_STRUCT * 8:
            yield f"{o.field} at {o.offset}: no struct is that large"
        if not o.field.may_be(o.width, is_bitfield=o.bit_offset is not None):
            yield f"{o.field} with {o.width} bytes, not {' or '.join(map(str, o.field.widths))}"


def _overlapping(offsets: Iterable[Offset]) -> Iterator[str]:
    for _, of_base in groupby(sorted(offsets, key=lambda o: (o.field.base, _start(o))), key=lambda o: o.field.base):
        for one, other in pairwise(of_base):
            if _end(one) > _start(other) and not _meant(one, other):
                yield f"{one.field} at {one.offset} overlaps {other.field} at {other.offset}"


def _meant(one: Offset, other: Offset) -> bool:
    """Whether C has the two on the same bytes: a part in its whole, or members of a union."""
    whole, part = (one, other) if is_part(other.field, one.field) else (other, one)
    if is_part(part.field, whole.field):
        return _start(whole) <= _start(part) and _end(part) <= _end(whole)
    return in_one_union(one.field, other.field) and _start(one) == _start(other)


def _misnested(offsets: Sequence[Offset]) -> Iterator[str]:
    parts = [sorted((o for o in offsets if o.field.struct == name), key=_start) for name in _NESTED]
    for outer, inner in pairwise(part for part in parts if part):
        if _start(inner[0]) < _end(outer[-1]):
            yield (f"{inner[0].field} at {inner[0].offset} lies before the end of {outer[-1].field} at "
                   f"{outer[-1].offset}, which comes first in every kernel")


def _start(o: Offset) -> int:
    return (o.offset or 0) * 8 + (o.bit_offset or 0)


def _end(o: Offset) -> int:
    return _start(o) + (o.bit_size or (o.width or 0) * 8)
