"""Which of the remembered answers may be used, and whether they contradict each other: pure."""

from __future__ import annotations

from collections.abc import Iterable

from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State, Verdict
from offset_db.rows import Disagreement, Stored, speaker

# Best first. Answers from anywhere else are shown, and never given.
TRUSTED = ("btf", "dwarf", "guess")


def module_build_id(kernel: Kernel, field: Field) -> str | None:
    """The build that decides where the field lies, when that is a module's and not vmlinux's."""
    return kernel.modules.get(field.module) if field.module else None


def fits_modules(stored: Stored, kernel: Kernel) -> bool:
    """Whether it speaks of `kernel` with its modules as they are now.

    What says nothing of a module's build was told by the debug information of the kernel, as it tells of its own. A
    guess is of what was loaded: nothing then, or no module.
    """
    build = module_build_id(kernel, stored.offset.field)
    return stored.module_build_id == build or (stored.module_build_id is None
                                               and speaker(stored.offset.source) != "guess")


def standing(stored: Iterable[Stored]) -> dict[tuple[Field, str | None], dict[str, Stored]]:
    """(field, module build-id) -> source -> answer, without what is refuted and what says nothing."""
    found: dict[tuple[Field, str | None], dict[str, Stored]] = {}
    for s in stored:
        if s.quarantined_at is None and s.offset.state is not State.UNKNOWN:
            found.setdefault((s.offset.field, s.module_build_id), {})[s.offset.source] = s
    return found


def usable(stored: Iterable[Stored], kernel: Kernel) -> dict[Field, list[Stored]]:
    """Field -> the answers that may be given for `kernel` with its modules as they are now, best first."""
    found: dict[Field, list[Stored]] = {}
    for (field, _), answers in standing(stored).items():
        found.setdefault(field, []).extend(
            s for s in answers.values() if s.offset.source in TRUSTED and is_sure(s) and fits_modules(s, kernel))
    return {field: sorted(answers, key=lambda s: TRUSTED.index(s.offset.source))
            for field, answers in found.items() if answers}


def told_elsewhere(stored: Iterable[Stored], kernel: Kernel) -> dict[Field, list[Offset]]:
    """Field -> what the same sources said of `kernel` in other databases, where that is another place: never given."""
    found: dict[Field, list[Offset]] = {}
    for answers in standing(stored).values():
        for s in answers.values():
            source = s.offset.source
            if source not in TRUSTED and speaker(source) in TRUSTED and is_sure(s) and fits_modules(s, kernel):
                found.setdefault(s.offset.field, []).append(s.offset)
    return found


def contradict(offsets: Iterable[Offset]) -> bool:
    """Whether the answers put one field at more than one place."""
    first, *rest = offsets
    return not all(first.same_place(other) for other in rest)


def told_apart(offsets: Iterable[Offset]) -> str:
    """Who says what, for the user: ``btf says 12, guess says 16``."""
    return ", ".join(f"{o.source} says {_place(o)}" for o in offsets)


def disagreements(kernel: Kernel, stored: Iterable[Stored]) -> list[Disagreement]:
    """The fields of one kernel that sources place differently, for whichever build of the owning module."""
    found = [(field, {source: s.offset for source, s in answers.items()})
             for (field, _), answers in standing(stored).items()]
    return [Disagreement(kernel, field, offsets) for field, offsets in found if contradict(offsets.values())]


def is_sure(stored: Stored) -> bool:
    """Whether the source itself had no doubt, and what it says is as wide as the field: no event sees that."""
    o = stored.offset
    if o.state is State.ABSENT:
        return o.verdict is Verdict.ABSENT
    return o.verdict is Verdict.OK and o.field.may_be(o.width, is_bitfield=o.bit_offset is not None)


def _place(offset: Offset) -> str:
    if offset.state is not State.KNOWN:
        return str(offset.state)
    return f"{offset.offset}" if offset.bit_offset is None else f"{offset.offset} bit {offset.bit_offset}"
