"""Questions about many kernels at once: which there are, where a field lies in each, how it moved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from offset_db import rows, trust
from offset_db.db import Database
from offset_db.exchange_names import distribution
from offset_db.rows import Remembered

# A field of every kernel: with the kernels first, SQLite finds each answer in the primary key instead of reading
# the answers of all other fields too.
_OF_FIELD = """
    FROM kernel CROSS JOIN "offset" AS answer ON answer.kernel_id = kernel.id AND answer.field = ?
    WHERE answer.quarantined_at IS NULL AND answer.state != 'unknown'
"""
# Counted here and not in Python: of thousands of answers only the few places are needed.
_PLACES = f"""
    SELECT release, machine, state, value, bit_offset, count(DISTINCT kernel.id) AS kernels {_OF_FIELD}
    GROUP BY release, machine, state, value, bit_offset
"""
# No longer than any number of a release is: of what is imported, more digits than int() takes may stand there.
_NUMBER = re.compile(r"([0-9]{1,18})")
Order = tuple[str | int, ...]
_PREFIX = 6  # hex digits of a build-id that are enough to mean it, if no other begins so


@dataclass(frozen=True, slots=True)
class Filter:
    """Which kernels are meant: those that match all that is given."""

    release: str = "*"
    machine: str | None = None
    distribution: str | None = None
    field: Field | None = None
    state: State = State.KNOWN


@dataclass(frozen=True, slots=True)
class Listed:
    """One kernel of a list, with how many fields are known of it."""

    kernel: Kernel
    distribution: str
    known: int


@dataclass(frozen=True, slots=True)
class Step:
    """One place of a field in the kernels of one version on one machine, from the `first` release to the `last`."""

    machine: str
    version: str
    state: State
    offset: int | None
    bit_offset: int | None
    kernels: int
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that two kernels have at different places; None for one that says nothing of it."""

    field: Field
    before: Offset | None
    after: Offset | None


def everything(db: Database) -> Iterator[Remembered]:
    """All that is held, kernel by kernel, ordered by key: one at a time, for there may be thousands."""
    for kernel in sorted(db.kernels(), key=lambda k: k.key):
        yield from (r for r in db.show(kernel.key) if r.kernel.key == kernel.key)


def counted(db: Database) -> tuple[int, int]:
    """How many kernels, and how many answers."""
    (row,) = db.read(lambda select: select('SELECT (SELECT count(*) FROM kernel) AS kernels, count(*) AS answers '
                                           'FROM "offset"'))
    return row["kernels"], row["answers"]


def one(db: Database, name: str) -> Remembered:
    """The kernel of that key, release, or beginning of a key. Raises KcompatError unless it is exactly one."""
    found = list(db.show(name))
    if not found and len(name) >= _PREFIX:
        keys = [k.key for k in db.kernels() if k.key.startswith(name)]
        found = [r for key in keys[:2] for r in db.show(key)]
    if not found:
        raise KcompatError(f"{db.path}: holds nothing of kernel {name!r}; `kcompat db kernels` lists what there is")
    if len(found) > 1:
        raise KcompatError(f"{name!r} is {len(found)} kernels: {', '.join(r.kernel.key for r in found[:4])}"
                           f"{', ...' if len(found) > 4 else ''}; name one by its key")
    return found[0]


def kernels(db: Database, wanted: Filter) -> list[Listed]:
    """The kernels that match, ordered by version."""
    known = db.read(lambda select: {row["build_id"]: row["known"] for row in select(
        "SELECT build_id, (SELECT count(DISTINCT field) FROM \"offset\" WHERE kernel_id = kernel.id "
        "AND state = 'known' AND quarantined_at IS NULL) AS known FROM kernel")})
    states = {row["build_id"]: State(row["state"]) for row in _places(db, wanted.field)} if wanted.field else {}
    listed = [Listed(k, distribution(k), known.get(k.key, 0)) for k in db.kernels()]
    return sorted((one for one in listed if _matches(one, wanted, states)),
                  key=lambda one: (release_order(one.kernel.release), one.kernel.key))


def place_of(text: str) -> str:
    """The place as `where` takes it, of the words of a user. Raises ValueError for what is none."""
    found = re.fullmatch(r"(absent)|([0-9]{1,9})(?: +bit +([0-7]))?", text.strip())
    if not found:
        raise ValueError(f"{text.strip()!r} is no place: an offset in bytes, like 48, with a bit as in '536 bit 3', or "
                         "absent")
    word, offset, bit = found.groups()
    return word or in_words(State.KNOWN, int(offset), int(bit) if bit else None)


def where(db: Database, field: Field, place: str) -> list[Kernel]:
    """The kernels that have the field at that place: ``12``, ``536 bit 3``, ``absent``."""
    found = {row["build_id"]: row for row in _places(db, field)
             if in_words(State(row["state"]), row["value"], row["bit_offset"]) == place}
    return sorted(map(rows.kernel_of, found.values()), key=lambda k: (release_order(k.release), k.key))


def history(db: Database, field: Field) -> list[Step]:
    """Where the field lay, by machine and kernel version, oldest first. Sources that agree count once."""
    found: dict[tuple[Any, ...], list[tuple[Order, str, int]]] = {}
    for row in db.read(lambda select: select(_PLACES, field.name)):
        order = release_order(row["release"])
        place = row["machine"], _series(order), row["state"], row["value"] or 0, row["bit_offset"] or 0
        key = *place, row["value"], row["bit_offset"]
        found.setdefault(key, []).append((order, row["release"], row["kernels"]))
    steps = []
    for (machine, series, state, *_, value, bit_offset), releases in sorted(found.items(), key=lambda i: i[0][:5]):
        steps.append(Step(machine, ".".join(map(str, series)), State(state), value, bit_offset,
                          sum(count for *_, count in releases), min(releases)[1], max(releases)[1]))
    return steps


def diff(before: Remembered, after: Remembered) -> list[Difference]:
    """The fields whose best answer differs, in the order of `before`."""
    old, new = chosen(before), chosen(after)
    return [Difference(f, old.get(f), new.get(f)) for f in {**old, **new} if _differ(old.get(f), new.get(f))]


def chosen(remembered: Remembered) -> dict[Field, Offset]:
    """The answer to give away for each field: the best source's, an import's if there is none, never a disputed one."""
    found = {}
    for (field, _), sources in trust.standing(remembered.stored).items():
        offsets = {source: s.offset for source, s in sources.items()}
        best = next((offsets[s] for s in (*trust.TRUSTED, *sorted(offsets)) if s in offsets), None)
        if best and not trust.contradict(offsets.values()):
            found[field] = best
    return found


def told(answer: Offset) -> str:
    return in_words(answer.state, answer.offset, answer.bit_offset)


def in_words(state: State, offset: int | None, bit_offset: int | None) -> str:
    """The place as `where` takes it."""
    if state is not State.KNOWN:
        return str(state)
    return str(offset) if bit_offset is None else f"{offset} bit {bit_offset}"


def release_order(release: str) -> Order:
    """Text and number in turn: sorts 4.15.0-9 before 4.15.0-10."""
    parts: list[str | int] = [*_NUMBER.split(release)]
    parts[1::2] = map(int, parts[1::2])
    return tuple(parts)


def _series(order: Order) -> tuple[str | int, ...]:
    """4, 15 of 4.15.0-213-generic; nothing where the release is not known."""
    return order[1:4:2] if order[:3:2] == ("", ".") else ()


def _places(db: Database, field: Field) -> list[Mapping[str, Any]]:
    """Every standing answer for one field, with its kernel."""
    sql = f"SELECT build_id, release, version, machine, modules, state, value, bit_offset {_OF_FIELD}"
    return db.read(lambda select: select(sql, field.name))


def _matches(listed: Listed, wanted: Filter, states: Mapping[str, State]) -> bool:
    kernel = listed.kernel
    if wanted.field and states.get(kernel.key, State.UNKNOWN) is not wanted.state:
        return False
    return (fnmatchcase(kernel.release, wanted.release)
            and wanted.machine in (None, kernel.machine)
            and (wanted.distribution is None or fnmatchcase(listed.distribution, f"{wanted.distribution}*")))


def _differ(one: Offset | None, other: Offset | None) -> bool:
    if one is None or other is None:
        return one is not other
    return not one.same_place(other)
