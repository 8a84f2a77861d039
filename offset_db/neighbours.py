"""What the nearest known kernels say of one that is not known: a place to name first, and never an answer."""

from __future__ import annotations

from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import State
from kcompat.version import release_version
from offset_db import queries, rows
from offset_db.db import Database
from offset_db.exchange_names import distribution

_ASKED = 3  # the nearest, and those that know what it does not


def nearest(db: Database, kernel: Kernel) -> dict[Field, tuple[str, int]]:
    """Field -> release and offset, from other builds of the same machine and series, 5.10 say.

    Those of the same distribution come first, then those with the fewest releases between.
    """
    try:
        series = ".".join(map(str, release_version(kernel.release).release[:2]))
    except KcompatError:
        return {}
    sql = "SELECT * FROM kernel WHERE machine = ? AND release GLOB ?"
    found = map(rows.kernel_of, db.read(lambda select: select(sql, kernel.machine, f"{series}[.-]*")))
    known: dict[Field, tuple[str, int]] = {}
    for near in by_distance(kernel, [k for k in found if k.key != kernel.key])[:_ASKED]:
        for remembered in (r for r in db.show(near.key) if r.kernel.key == near.key):
            for field, answer in queries.chosen(remembered).items():
                if answer.state is State.KNOWN and answer.offset is not None:
                    known.setdefault(field, (near.release, answer.offset))
    return known


def by_distance(kernel: Kernel, others: list[Kernel]) -> list[Kernel]:
    """The others, nearest first."""
    here = queries.release_order(kernel.release)
    releases = sorted({here, *(queries.release_order(k.release) for k in others)})
    rank = {release: number for number, release in enumerate(releases)}

    def distance(other: Kernel) -> tuple[bool, int, str]:
        return (_family(other) != _family(kernel), abs(rank[queries.release_order(other.release)] - rank[here]),
                other.key)

    return sorted(others, key=distance)


def _family(kernel: Kernel) -> str:
    return distribution(kernel).partition("-")[0]
