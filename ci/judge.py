"""From what a guest reported to the checks of one kernel: pass, fail or could not tell, each with its reason."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ci import offsetof, traffic
from ci.job import Run
from ci.judge_fields import Answer, compare, open_fields
from ci.results import Check, FieldResult
from ci.verdict import Outcome, Step, last_lines

Found: TypeAlias = Mapping[str, Any]
# In a reason; the details have all.
_NAMED = 3


@dataclass(frozen=True)
class Dwarf:
    """What the host read in the kernel's vmlinux, as the product prints it; None if it could not, for `reason`."""

    said: Mapping[str, Any] | None
    reason: str
    seconds: float
    by: str = ""
    """Who said it, if not DWARF."""
    name: str = "dwarf"
    """The judge: dwarf, or headers where that DWARF is of the kernel's headers only."""

    def corrected(self, layout: offsetof.Layout) -> Dwarf:
        """The same with the compiler's answers."""
        if self.said is None:
            return self
        return replace(self, said={**self.said, "fields": offsetof.answers(layout, self.said["fields"])},
                       by="the compiler's offsetof, for DWARF does not know what RANDSTRUCT did")

    @property
    def fields(self) -> Sequence[Answer] | None:
        return self.said["fields"] if self.said else None


def judge(run: Run, dwarf: Dwarf | None) -> tuple[tuple[Check, ...], tuple[FieldResult, ...]]:
    """The checks of a kernel that was booted, boot to shutdown, and its fields. A check never made is not there."""
    steps = {step.name: step for step in run.steps}
    booted = Check("boot", Outcome.PASS, "", run.boot_s) if run.boot_s is not None else Check("boot", *_verdict(run))
    judges = _judges(steps.get("btf"), dwarf)
    collect = _of_step("collect", steps, run, _collect)
    fields = compare(_fields(steps.get("guess")) or (), judges, collect.outcome is Outcome.PASS)
    checks = [
        booted,
        _of_step("info", steps, run, _info),
        _of_step("guess", steps, run, lambda found: _guess(found, fields)),
        *_compared(steps, run, dwarf, fields),
        _of_step("tests", steps, run, _tests),
        collect,
        Check("shutdown", *_verdict(run)),
    ]
    return tuple(checks), fields


def build_id(run: Run) -> str | None:
    """What the guest said of its kernel."""
    for step in run.steps:
        if step.name == "info" and step.found.get("said"):
            identity: str | None = step.found["said"]["kernel"]["build_id"]
            return identity
    return None


@dataclass(frozen=True)
class Recording:
    """What a guess was drawn from, for ``kcompat guess --replay``, and what a judge says of that kernel."""

    data: bytes
    answers: Mapping[str, Any]


def recorded(run: Run, dwarf: Dwarf | None) -> Recording | None:
    """The guest's recording, if there is one and anybody to judge it."""
    found = {step.name: step.found for step in run.steps}
    said = found.get("btf", {}).get("said") or (dwarf and dwarf.said)
    data = found.get("guess", {}).get("recording")
    return Recording(base64.b64decode(data), said) if data and said else None


def exported(run: Run) -> str | None:
    """The guest's offset database as JSON Lines, if it got that far."""
    return next((s.found["lines"] for s in run.steps if s.name == "offsets" and s.found.get("status") == 0), None)


def _of_step(name: str, steps: Mapping[str, Step], run: Run, look: Callable[[Found], Check]) -> Check:
    if name not in steps:
        return Check(name, Outcome.UNKNOWN, _lost(run))
    step = steps[name]
    if "error" in step.found:
        return Check(name, Outcome.UNKNOWN, step.found["error"], step.seconds)
    made = look(step.found)
    return Check(name, made.outcome, made.reason, step.seconds, made.details)


def _verdict(run: Run) -> tuple[Outcome, str]:
    return run.verdict.outcome, "" if run.verdict.outcome is Outcome.PASS else run.verdict.reason


def _lost(run: Run) -> str:
    return "the guest did not report it" if run.verdict.outcome is Outcome.PASS else run.verdict.reason


def _info(found: Found) -> Check:
    if not found["said"] or found["status"] != 0:
        return Check("info", Outcome.FAIL, _fault(found))
    return Check("info", Outcome.PASS, "", details={"kernel": found["said"]["kernel"]})


def _guess(found: Found, fields: Sequence[FieldResult]) -> Check:
    """Fields left open are told, and fail only if the collector cannot do without them."""
    if not found["said"]:
        return Check("guess", Outcome.FAIL, _fault(found))
    left = open_fields(fields)
    needed = [f.name for f in fields if f.name in left and f.outcome is Outcome.FAIL]
    details = {"open": left, "stats": found["said"]["stats"]}
    if needed:
        return Check("guess", Outcome.FAIL, f"left open, and the collector does not run: {_few(needed)}", None, details)
    told = f"{len(fields) - len(left)} fields" + (f"; left open: {_few(left)}" if left else "")
    return Check("guess", Outcome.PASS, told, None, details)


def _judges(btf: Step | None, dwarf: Dwarf | None) -> dict[str, Sequence[Answer]]:
    answers = {"btf": _fields(btf)} | ({dwarf.name: dwarf.fields} if dwarf else {})
    return {name: fields for name, fields in answers.items() if fields}


def _fields(step: Step | None) -> Sequence[Answer] | None:
    said = step and step.found.get("said")
    return said["fields"] if said else None


def _compared(
    steps: Mapping[str, Step], run: Run, dwarf: Dwarf | None, fields: Sequence[FieldResult]
) -> Iterable[Check]:
    """A check for each judge there is; if there is none, one that could not be told, for a guess is no proof."""
    btf = steps.get("btf")
    if btf is None or btf.found.get("there", True):
        yield _of_step("btf", steps, run, lambda found: _against("btf", _fault(found), _fields(btf), fields))
    elif dwarf is None:
        yield Check("btf", Outcome.UNKNOWN, "this kernel has no BTF, and there is no vmlinux with DWARF", btf.seconds)
    if dwarf is not None:
        made = _against(dwarf.name, dwarf.reason, dwarf.fields, fields)
        reason = f"{made.reason} ({dwarf.by})" if dwarf.by else made.reason
        yield Check(dwarf.name, made.outcome, reason, dwarf.seconds, made.details)


def _against(judge: str, fault: str, answers: Sequence[Answer] | None, fields: Sequence[FieldResult]) -> Check:
    if not answers:
        return Check(judge, Outcome.FAIL, fault)
    if not fields:
        return Check(judge, Outcome.UNKNOWN, "there is no guess to compare with")
    left = open_fields(fields)
    sure = [f for f in fields if f.name not in left]
    wrong = [f for f in sure if f.outcome is Outcome.FAIL and f"{judge} says" in f.reason]
    unjudged = [f.name for f in sure if f.outcome is Outcome.UNKNOWN]
    details = {"wrong": [f.name for f in wrong], "unjudged": unjudged}
    if wrong:
        told = [f"{f.name}: {f.reason}" for f in wrong]
        return Check(judge, Outcome.FAIL, f"{len(wrong)} wrong: {_few(told)}", None, details)
    if unjudged:
        return Check(judge, Outcome.UNKNOWN, f"no judge knows {_few(unjudged)}", None, details)
    return Check(judge, Outcome.PASS, f"{len(sure)} fields equal", None, details)


def _tests(found: Found) -> Check:
    overdue = found.get("overdue")
    if found["tests"] is None:
        told = f"pytest ended with {found['status']} and no report"
        return Check("tests", Outcome.UNKNOWN if overdue else Outcome.FAIL, overdue or told)
    failed = [name for name, outcome, *_ in found["tests"] if outcome == "failed"]
    passed = sum(outcome == "passed" for _, outcome, *_ in found["tests"])
    details = {"tests": found["tests"]}
    if failed:
        return Check("tests", Outcome.FAIL, f"{len(failed)} failed: {_few(failed)}", None, details)
    if overdue:
        return Check("tests", Outcome.UNKNOWN, f"{passed} passed, but pytest {overdue}", None, details)
    if found["status"] and passed:
        return Check("tests", Outcome.FAIL, f"pytest ended with {found['status']}", None, details)
    if not passed:
        return Check("tests", Outcome.UNKNOWN, f"none of {len(found['tests'])} tests ran", None, details)
    return Check("tests", Outcome.PASS, f"{passed} passed, {len(found['tests']) - passed} skipped", None, details)


def _collect(found: Found) -> Check:
    if not found["started"]:
        return Check("collect", Outcome.FAIL, f"it did not start: {_last(found['stderr'])}")
    counts = list(traffic.compare(found["records"], found["expected"], found["addresses"]))
    details = {"counts": [count._asdict() for count in counts]}
    wrong = [f"{c.what} {c.seen}, not {c.sent}" for c in counts if c.seen != c.sent]
    if wrong or found["status"] != 0:
        told = _few(wrong) if wrong else f"it ended with {found['status']}: {_last(found['stderr'])}"
        return Check("collect", Outcome.FAIL, told, None, details)
    if not any(c.sent for c in counts):
        return Check("collect", Outcome.UNKNOWN, "nothing was sent", None, details)
    return Check("collect", Outcome.PASS, f"{len(counts)} counts equal", None, details)


def _fault(found: Found) -> str:
    return f"exit status {found.get('status')}: {_last(found.get('stderr', ''))}"


def _last(words: str) -> str:
    return next(iter(last_lines(words, 1)), "it said nothing")


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
