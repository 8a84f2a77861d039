"""What every report says of a kernel: its checks, its fields by what became of them, the tests that failed."""

from __future__ import annotations

from collections.abc import Iterable

from ci.results import CHECKS, Check, FieldResult, KernelResult
from ci.verdict import Outcome

JUDGEMENTS = ("right", "wrong", "ambiguous", "unknown")


def judged(field: FieldResult) -> str:
    """One of JUDGEMENTS."""
    if field.outcome is Outcome.PASS:
        return "right"
    if field.verdict == "ambiguous":
        return "ambiguous"
    # An unverified field that the collector needs is a failure too, but nobody claimed to know where it is.
    return "wrong" if field.outcome is Outcome.FAIL and field.verdict in ("ok", "absent") else "unknown"


def count(kernels: Iterable[KernelResult]) -> dict[str, int]:
    counts = dict.fromkeys(JUDGEMENTS, 0)
    for field in (field for kernel in kernels for field in kernel.fields):
        counts[judged(field)] += 1
    return counts


def place(field: FieldResult) -> int | None:
    """Where it is: a judge knows better than the guess."""
    for judge in field.judges.values():
        if judge.get("state") == "known":
            offset: int | None = judge.get("offset")
            return offset
    return field.offset


def asked(kernel: KernelResult) -> tuple[Check, ...]:
    """A kernel of which nothing was asked is not one without a fault."""
    return kernel.checks or (Check("asked", Outcome.UNKNOWN, "nothing was asked of it"),)


def check_names(kernels: Iterable[KernelResult]) -> list[str]:
    """Those some kernel has, in the order they happen; a command run in place of the checks comes last."""
    seen = dict.fromkeys(check.name for kernel in kernels for check in asked(kernel))
    return [name for name in CHECKS if name in seen] + [name for name in seen if name not in CHECKS]


def why(kernel: KernelResult) -> str:
    """Empty only for a kernel that passed. What one fault did to many checks is said once."""
    outcome = kernel.outcome
    reasons: dict[str, list[str]] = {}
    for check in asked(kernel):
        if check.outcome is outcome is not Outcome.PASS:
            reasons.setdefault(check.reason, []).append(check.name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())


def failed_tests(check: Check) -> list[tuple[str, str]]:
    """Name and message of each test of tests/kernel that failed (``ci.guest`` reports them so)."""
    tests = check.details.get("tests") or ()
    return [(str(name), str(message)) for name, outcome, _, message in tests if outcome == "failed"]
