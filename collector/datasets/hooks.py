"""Where programs go: a dataset has sets of hooks, each of which is enough, and the first that is all there is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kcompat.errors import KcompatError, Missing, Unsupported
from kcompat.hook_status import HookState
from kcompat.load import Loaded
from kcompat.preemption import preempts_programs

log = logging.getLogger(__name__)

Backend = Literal["kprobe", "rawtp"]
BACKENDS: tuple[Backend, ...] = ("kprobe", "rawtp")


@dataclass(frozen=True, slots=True)
class Hook:
    """A program and the kernel symbols it goes to: all that exist with `every`, else the first.

    With `where_preempted` only where programs may be preempted, and if there is such a program.
    """

    program: str
    symbols: tuple[str, ...]
    required: bool = True
    every: bool = False
    where_preempted: bool = False
    unless: tuple[tuple[str, ...], ...] = ()
    """Sets of programs that do the same better: where all of one are attached, this one is not."""


def attach_first(dataset: str, loaded: Loaded, sets: Mapping[Backend, Sequence[Hook]],
                 backends: Sequence[Backend]) -> Backend:
    """Attaches the first set of which everything required is there. Raises Unsupported when none is."""
    missing = []
    for backend in backends:
        try:
            for hook in sets[backend]:
                if _is_wanted(hook, loaded):
                    _attach(dataset, loaded, hook)
        except KcompatError as error:
            loaded.detach()
            missing.append(str(error))
            continue
        return backend
    raise Unsupported(f"{dataset} is off: {'; '.join(missing)}")


def _is_wanted(hook: Hook, loaded: Loaded) -> bool:
    if any(attached(loaded, better) for better in hook.unless):
        return False
    return not hook.where_preempted or (loaded.has(hook.program) and preempts_programs())


def attached(loaded: Loaded, programs: Sequence[str]) -> bool:
    """Whether all of these are."""
    return {status.program for status in loaded.hooks if status.state is HookState.ATTACHED}.issuperset(programs)


def _attach(dataset: str, loaded: Loaded, hook: Hook) -> None:
    hooked, reasons = 0, []
    for symbol in hook.symbols:
        try:
            loaded.attach(hook.program, symbol)
        except Missing as error:
            reasons.append(str(error))
        except KcompatError as error:
            if hook.required:
                raise
            reasons.append(str(error))
        except OSError as error:
            reasons.append(f"{hook.program.partition('__')[0]} {symbol}: {error.strerror}")
        else:
            hooked += 1
            if not hook.every:
                return
    if not hooked and hook.required:
        raise Unsupported(", ".join(reasons))
    if not hooked:
        log.info("%s goes without %s: %s", dataset, hook.program, ", ".join(reasons))
