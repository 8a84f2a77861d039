"""One guess of the running kernel, from nothing to offsets with evidence."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from guessers.conclusions import FOLLOWED, Findings, conclude
from guessers.experiments import collect
from guessers.haul import Haul
from guessers.hooks import BACKENDS, Backend
from guessers.memory import KernelMemory, compiled
from guessers.namespace import in_own_thread
from guessers.recording import Recording
from guessers.search import Found, search
from guessers.setting import Setting
from guessers.verdicts import SOURCE, judge
from kcompat.fields import CATALOGUE, Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, Offsets, State
from kcompat.version import running_version_code

log = logging.getLogger(__name__)

# Objects only the first round looks at.
_ONCE = frozenset({"socket", "file", "fdtable", "msghdr"})
NOBODY: Mapping[Field, tuple[str, int]] = {}
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
    recording: Recording
    """All that went into it: `replay` makes the same guess of it."""

    @property
    def hooks(self) -> dict[str, tuple[str, ...]]:
        """What was hooked, by program: the evidence's first line."""
        return self.recording.setting.programs


def guess(wanted: Sequence[Field] = CATALOGUE, *, backends: tuple[Backend, ...] = BACKENDS, use_cache: bool = True,
          seed: int | None = None, near: Mapping[Field, tuple[str, int]] = NOBODY) -> Guess:
    """Finds the offsets of `wanted` on the running kernel by experiment.

    `near` says what the nearest known kernels have, release and offset: it is told, and decides nothing.

    Raises Missing or Unsupported when no experiment is possible at all: not root, no bcc and nothing compiled,
    no BPF, lockdown. What could not be found is in the result, with the reason.
    """
    started = time.monotonic()
    program = compiled(running_version_code(Kernel.running().release), use_cache=use_cache)
    compile_s = 0.0 if program.cached else time.monotonic() - started
    return in_own_thread(lambda nonce: _experiment(KernelMemory(program, backends), nonce, wanted, compile_s, started,
                                                   random.Random(seed), near))


def _experiment(memory: KernelMemory, nonce: bytes, wanted: Sequence[Field], compile_s: float, started: float,
                rng: random.Random, near: Mapping[Field, tuple[str, int]]) -> Guess:
    sampling_s = solving_s = 0.0
    with memory:
        memory.adopt(nonce)
        haul = Haul()
        for number in itertools.count(1):
            clock = time.monotonic()
            collect(memory, rng, haul, whole=number == 1)
            sampling_s += time.monotonic() - clock
            clock = time.monotonic()
            setting = Setting.of(memory, near)
            findings, offsets = solve(wanted, haul, setting)
            solving_s += time.monotonic() - clock
            if number == _ROUNDS or not any(map(_worth_another_round, offsets)):
                break
        silent = [h.program for h, (_, ours) in memory.hits().items() if not ours and h.object != "trigger"]
    if silent:
        log.debug("attached but never fired for us: %s", ", ".join(silent))
    stats = Stats(haul.connections, _count(findings), number, compile_s, sampling_s, solving_s,
                  time.monotonic() - started)
    return Guess(Offsets(offsets), stats, Recording(Kernel.running(), haul, setting, number))


def replay(recording: Recording, wanted: Sequence[Field] = CATALOGUE) -> Guess:
    """The guess that was recorded, made again: no kernel, no root, the same verdicts and evidence."""
    started = time.monotonic()
    findings, offsets = solve(wanted, recording.haul, recording.setting)
    solving_s = time.monotonic() - started
    stats = Stats(recording.haul.connections, _count(findings), recording.rounds, 0.0, 0.0, solving_s, solving_s)
    return Guess(Offsets(offsets), stats, recording)


def _count(findings: Findings) -> int:
    return sum(map(len, findings.samples.values()))


def solve(wanted: Sequence[Field], haul: Haul, setting: Setting) -> tuple[Findings, list[Offset]]:
    """Verdicts with what the solver cannot know: why there is no sample, what was hooked, what is not there at all."""
    findings = conclude(haul)
    verdicts = deduce(wanted, findings, {f: _why_no_sample(f, haul, setting) for f in wanted})
    absent = findings.absent | setting.absent
    return findings, [_completed(verdicts[field], absent.get(field), setting) for field in wanted]


def deduce(wanted: Sequence[Field], findings: Findings, missing: Mapping[Field, str]) -> dict[Field, Offset]:
    """Candidates for every wanted field, then verdicts. The findings may be of several rounds."""
    found = [findings.reached.get(field) or (Found(field, (), {"samples": 0}) if field in FOLLOWED
             else search(field, findings.samples.get(field.base, ()))) for field in wanted]
    return judge(found, findings.samples, missing)


def _completed(offset: Offset, absent: str | None, setting: Setting) -> Offset:
    if offset.state is State.UNKNOWN and not offset.candidates and absent:
        return Offset.absent(offset.field, SOURCE, absent, evidence=offset.evidence)
    evidence = {**offset.evidence, "hooks": setting.hooks_of(offset.field)}
    candidates = offset.candidates
    if near := setting.near.get(offset.field):
        evidence["nearest_known"] = f"{near[1]} in {near[0]}"
        candidates = tuple(sorted(candidates, key=lambda at: at != near[1]))
    return replace(offset, evidence=evidence, candidates=candidates)


def _worth_another_round(offset: Offset) -> bool:
    """Whether more samples could help: something was found, and what is looked for can be made to differ."""
    return (offset.state is State.UNKNOWN and bool(offset.evidence.get("candidates"))
            and offset.evidence["distinct_values"] > 1 and offset.field not in FOLLOWED
            and offset.field.base not in _ONCE)


def _why_no_sample(field: Field, haul: Haul, setting: Setting) -> str:
    if reason := setting.why_unhooked(field) or haul.obstacles.get(field) or setting.untold.get(field):
        return reason
    told = "; ".join(f"{why} ({count} times)" for why, count in haul.missed.items())
    return told or "no socket told its value"
