"""What a run of the matrix found, kernel by kernel and check by check: plain values, to and from JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ci.verdict import Outcome

FORMAT = 1
# In the order they are shown. One that is missing was not asked: "btf" of a kernel without BTF, "dwarf" of one without
# DWARF, "headers" of one not judged by them. What was asked and got no answer, because the kernel was lost, is there
# and could not be told.
CHECKS = ("fetch", "boot", "info", "guess", "btf", "dwarf", "headers", "tests", "collect", "shutdown")


@dataclass(frozen=True)
class Check:
    """One question asked of one kernel; `seconds` is what the answer took, None if nobody measured it."""

    name: str
    outcome: Outcome
    reason: str
    seconds: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FieldResult:
    """One field on one kernel: offsets in bytes, None where that source does not know it or it is not there.

    `verdict` is the guess's own (ok, ambiguous, absent, unverified); `judges` holds what each other authority ("btf",
    "dwarf", "headers") says: {"state": "known"|"absent"|"unknown", "offset": int|None}. `outcome` compares them.
    """

    name: str
    verdict: str
    offset: int | None
    judges: Mapping[str, Mapping[str, Any]]
    outcome: Outcome
    candidates: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class KernelResult:
    """Everything one kernel yielded. `boot_s` and `total_s` are the VM's wall time, `steps_s` where it went."""

    name: str
    machine: str
    flavour: str
    release: str | None = None
    package: str | None = None
    version: str | None = None
    build_id: str | None = None
    origin: str = "debian"
    """debian, ubuntu, built (a kernel of our own) or given (a user's)."""
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    fields: tuple[FieldResult, ...] = ()
    boot_s: float | None = None
    total_s: float | None = None
    steps_s: Mapping[str, float] = field(default_factory=dict)
    worker: str | None = None
    attempts: int = 1
    console: tuple[str, ...] = ()
    """The last 40 console lines, kept where the kernel did not pass."""
    log: str | None = None

    @property
    def outcome(self) -> Outcome:
        return worst(check.outcome for check in self.checks)

    @property
    def reason(self) -> str:
        """Why it did not pass, first things first; empty if it did."""
        return "; ".join(f"{c.name}: {c.reason}" for c in self.checks if c.outcome is self.outcome is not Outcome.PASS)

    def check(self, name: str) -> Check | None:
        return next((check for check in self.checks if check.name == name), None)


@dataclass(frozen=True)
class MatrixResult:
    """A whole run: ``started`` in ISO 8601 UTC, ``host`` the machine and emulator it ran on."""

    started: str
    seconds: float
    host: Mapping[str, str]
    kernels: tuple[KernelResult, ...]
    revision: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **_plain(asdict(self)), "exit_code": exit_code(k.outcome for k in self.kernels)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> MatrixResult:
        """What `as_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']!r} is not {FORMAT}")
        kernels = tuple(_kernel(kernel) for kernel in raw["kernels"])
        return cls(raw["started"], raw["seconds"], raw["host"], kernels, raw["revision"])


def joined(results: Sequence[MatrixResult]) -> MatrixResult:
    """Parts of one matrix, run one after the other or each on a machine of its own: of a kernel the last one counts.

    What is not the same in all parts, the machine or the revision, is told as several.
    """
    kernels = {kernel.name: kernel for result in results for kernel in result.kernels}
    host = {key: _each(result.host.get(key) for result in results) or "" for key in results[0].host}
    return MatrixResult(min(result.started for result in results), sum(result.seconds for result in results), host,
                        tuple(kernels.values()), _each(result.revision for result in results))


def _each(values: Iterable[str | None]) -> str | None:
    return ", ".join(dict.fromkeys(value for value in values if value)) or None


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """A failure outweighs what could not be told, and that outweighs a pass; nothing asked is nothing told."""
    seen = set(outcomes)
    if Outcome.FAIL in seen:
        return Outcome.FAIL
    return Outcome.PASS if seen == {Outcome.PASS} else Outcome.UNKNOWN


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0 only if everything asked for passed; 1 on a failure, else 3 when something could not be told."""
    return {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.UNKNOWN: 3}[worst(outcomes)]


def _plain(value: Any) -> Any:
    if isinstance(value, Outcome):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _kernel(raw: Mapping[str, Any]) -> KernelResult:
    checks = tuple(Check(**{**check, "outcome": Outcome(check["outcome"])}) for check in raw["checks"])
    fields = tuple(
        FieldResult(**{**f, "outcome": Outcome(f["outcome"]), "candidates": tuple(f["candidates"])})
        for f in raw["fields"]
    )
    lists = {"notes": tuple(raw["notes"]), "console": tuple(raw["console"])}
    return KernelResult(**{**raw, **lists, "checks": checks, "fields": fields})
