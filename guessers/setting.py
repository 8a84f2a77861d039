"""Under what conditions a haul was made, as far as verdicts tell it: hooks, what had none, what cannot be there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as dc_field

from guessers.absence import why_absent, why_untold
from guessers.memory import KernelMemory
from guessers.messages import ITER
from kcompat.fields import CATALOGUE, Field

_NF_CONN = ("nf_conn", "sk_buff")
# The objects of hooks.py that lead to a base object, where that is not the sock.
_LED_BY = {"flowi4": ("flowi4",), "flowi6": ("flowi6",), "sk_buff": ("sk_buff",), "nf_conn": _NF_CONN,
           "nf_conntrack_tuple": _NF_CONN, "msghdr": ("msghdr",),
           **dict.fromkeys(("task_struct", "files_struct", "fdtable", "file", "socket"), ("task",))}


@dataclass(slots=True)
class Setting:
    programs: dict[str, tuple[str, ...]] = dc_field(default_factory=dict)
    """What was hooked, by program."""
    hooks: dict[str, tuple[str, ...]] = dc_field(default_factory=dict)
    """Backend and symbol of what was hooked, by the object it gives."""
    unhooked: dict[str, str] = dc_field(default_factory=dict)
    """Why an object had no hook."""
    absent: dict[Field, str] = dc_field(default_factory=dict)
    """The proof that the kernel was built without a field."""
    untold: dict[Field, str] = dc_field(default_factory=dict)
    """Why nothing on the kernel tells a field's value."""
    near: dict[Field, tuple[str, int]] = dc_field(default_factory=dict)
    """Release and offset of the nearest kernel that is known: named first among equals, and never an answer."""

    @classmethod
    def of(cls, memory: KernelMemory, near: Mapping[Field, tuple[str, int]], fields: Iterable[Field] = CATALOGUE
           ) -> Setting:
        made = cls({h.program: symbols for h, symbols in memory.attached.items()}, {}, dict(memory.missing),
                   near=dict(near))
        for hook, symbols in memory.attached.items():
            made.hooks[hook.object] = (*made.hooks.get(hook.object, ()), *(f"{hook.backend} {s}" for s in symbols))
        for field in fields:
            if proof := why_absent(field):
                made.absent[field] = proof
            if reason := why_untold(field):
                made.untold[field] = reason
        return made

    def hooks_of(self, field: Field) -> list[str]:
        """What was hooked that leads to the field."""
        return [hook for led in _objects(field) for hook in self.hooks.get(led, ())]

    def why_unhooked(self, field: Field) -> str | None:
        """Why nothing leads to the field; None where something does."""
        missing = [self.unhooked[led] for led in _objects(field) if led in self.unhooked]
        return f"no hook for it here: {missing[0]}" if len(missing) == len(_objects(field)) else None


def _objects(field: Field) -> tuple[str, ...]:
    """The objects of hooks.py that lead to a field."""
    return ("iov_iter",) if field is ITER else _LED_BY.get(field.base, ("sk", "socket"))
