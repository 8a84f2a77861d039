"""One guess of the running kernel, from nothing to offsets with evidence."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from guessers.absence import why_absent, why_untold
from guessers.experiments import collect
from guessers.files import FILE_FAMILY
from guessers.hooks import BACKENDS, Backend
from guessers.memory import KernelMemory, compiled
from guessers.messages import ITER, MESSAGE_FAMILY
from guessers.namespace import in_own_thread
from guessers.sampling import Haul
from guessers.search import Found, Sample, search
from guessers.verdicts import SOURCE, judge
from kcompat.fields import CATALOGUE, Field, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, Offsets, State
from kcompat.version import running_version_code

log = logging.getLogger(__name__)

# Pointers, proved by following them instead of by their value.
FOLLOWED = FILE_FAMILY | MESSAGE_FAMILY | frozenset(map(find, (
    "sk_socket", "skc_net", "net.ns.inum", "sk_buff.dev", "ct_net")))
_NF_CONN = ("nf_conn", "sk_buff")
# The objects of hooks.py that lead to a base object, where that is not the sock.
_LED_BY = {"flowi4": ("flowi4",), "flowi6": ("flowi6",), "sk_buff": ("sk_buff",), "nf_conn": _NF_CONN,
           "nf_conntrack_tuple": _NF_CONN, "msghdr": ("msghdr",),
           **dict.fromkeys(("task_struct", "files_struct", "fdtable", "file", "socket"), ("task",))}
# Objects only the first round looks at.
_ONCE = frozenset({"socket", "file", "fdtable", "msghdr"})
_ROUNDS = 4  # ambiguity is answered by more experiments, up to so many rounds


@dataclass(frozen=True, slots=True)
class Stats:
    """What the guess cost. Seconds; `compile_s` is 0 when the compiled object was at hand."""

    connections: int
    samples: int
    rounds: int
    compile_s: float
    sampling_s: float
    solving_s: float
    total_s: float

    def as_json(self) -> dict[str, float | int]:
        return {name: round(getattr(self, name), 6) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Guess:
    offsets: Offsets
    stats: Stats
    hooks: dict[str, tuple[str, ...]]
    """What was hooked, by object: the evidence's first line."""


def guess(wanted: Sequence[Field] = CATALOGUE, *, backends: tuple[Backend, ...] = BACKENDS, use_cache: bool = True,
          seed: int | None = None) -> Guess:
    """Finds the offsets of `wanted` on the running kernel by experiment.

    Raises Missing or Unsupported when no experiment is possible at all: not root, no bcc and nothing compiled,
    no BPF, lockdown. What could not be found is in the result, with the reason.
    """
    started = time.monotonic()
    program = compiled(running_version_code(Kernel.running().release), use_cache=use_cache)
    compile_s = 0.0 if program.cached else time.monotonic() - started
    return in_own_thread(lambda nonce: _experiment(KernelMemory(program, backends), nonce, wanted, compile_s, started,
                                                   random.Random(seed)))


def _experiment(memory: KernelMemory, nonce: bytes, wanted: Sequence[Field], compile_s: float, started: float,
                rng: random.Random) -> Guess:
    sampling_s = solving_s = 0.0
    with memory:
        memory.adopt(nonce)
        haul = Haul()
        for number in itertools.count(1):
            clock = time.monotonic()
            collect(memory, rng, haul, whole=number == 1)
            sampling_s += time.monotonic() - clock
            clock = time.monotonic()
            offsets = solve(wanted, haul, memory)
            solving_s += time.monotonic() - clock
            if number == _ROUNDS or not any(map(_worth_another_round, offsets)):
                break
        hooks = {h.program: symbols for h, symbols in memory.attached.items()}
        silent = [h.program for h, (_, ours) in memory.hits().items() if not ours and h.object != "trigger"]
    if silent:
        log.debug("attached but never fired for us: %s", ", ".join(silent))
    stats = Stats(haul.connections, haul.samples, number, compile_s, sampling_s, solving_s, time.monotonic() - started)
    return Guess(Offsets(offsets), stats, hooks)


def solve(wanted: Sequence[Field], haul: Haul, memory: KernelMemory) -> list[Offset]:
    """Verdicts with what the solver cannot know: why there is no sample, what was hooked, what is not there at all."""
    verdicts = deduce(wanted, haul, {f: _why_no_sample(f, haul, memory) for f in wanted})
    return [_completed(verdicts[field], haul, memory) for field in wanted]


def deduce(wanted: Sequence[Field], haul: Haul, missing: Mapping[Field, str]) -> dict[Field, Offset]:
    """Candidates for every wanted field, then verdicts: no I/O. The haul may hold several rounds."""
    samples: dict[str, list[Sample]] = {"sock": [s.sample for s in haul.socks], **haul.flows}
    found = [haul.reached.get(field) or (Found(field, (), {"samples": 0}) if field in FOLLOWED
             else search(field, samples.get(field.base, ()))) for field in wanted]
    return judge(found, samples, missing)


def _completed(offset: Offset, haul: Haul, memory: KernelMemory) -> Offset:
    reason = why_absent(offset.field) or haul.absent.get(offset.field)
    if offset.state is State.UNKNOWN and not offset.candidates and reason:
        return Offset.absent(offset.field, SOURCE, reason, evidence=offset.evidence)
    objects = _objects(offset.field)
    hooks = [f"{h.backend} {symbol}" for h, symbols in memory.attached.items() if h.object in objects
             for symbol in symbols]
    return replace(offset, evidence={**offset.evidence, "hooks": hooks})


def _objects(field: Field) -> tuple[str, ...]:
    """The objects of hooks.py that lead to a field."""
    return ("iov_iter",) if field is ITER else _LED_BY.get(field.base, ("sk", "socket"))


def _worth_another_round(offset: Offset) -> bool:
    """Whether more samples could help: something was found, and what is looked for can be made to differ."""
    return (offset.state is State.UNKNOWN and bool(offset.evidence.get("candidates"))
            and offset.evidence["distinct_values"] > 1 and offset.field not in FOLLOWED
            and offset.field.base not in _ONCE)


def _why_no_sample(field: Field, haul: Haul, memory: KernelMemory) -> str:
    missing = [memory.missing[o] for o in _objects(field) if o in memory.missing]
    if len(missing) == len(_objects(field)):
        return f"no hook for it here: {missing[0]}"
    if reason := haul.obstacles.get(field) or why_untold(field):
        return reason
    told = "; ".join(f"{why} ({count} times)" for why, count in haul.missed.items())
    return told or "no socket told its value"
