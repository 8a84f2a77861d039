"""The guess beside what BTF and DWARF say of the same kernel, field by field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ci.results import FieldResult
from ci.verdict import Outcome

# As `kcompat guess --json` and `kcompat resolve --json` print it.
Answer: TypeAlias = Mapping[str, Any]


def compare(
    guessed: Sequence[Answer], judges: Mapping[str, Sequence[Answer]], collector_runs: bool
) -> tuple[FieldResult, ...]:
    """One result for each field the guess speaks of.

    Known or absent, the guess must be what every judge says that says anything; without one it cannot be told.
    A field the guess leaves open is a failure if the collector does not run on what is left; else it cannot be told.
    """
    by_name = {judge: {name(answer): answer for answer in answers} for judge, answers in judges.items()}
    return tuple(_compare(answer, {j: a.get(name(answer)) for j, a in by_name.items()}, collector_runs)
                 for answer in guessed)


def open_fields(fields: Iterable[FieldResult]) -> list[str]:
    return [field.name for field in fields if field.verdict not in ("ok", "absent")]


def name(answer: Answer) -> str:
    return f"{answer['struct']}.{answer['member']}"


def _compare(guess: Answer, judges: Mapping[str, Answer | None], collector_runs: bool) -> FieldResult:
    told = {judge: answer or {"state": "unknown", "offset": None} for judge, answer in judges.items()}
    outcome, reason = _outcome(guess, told, collector_runs)
    seen = {judge: {"state": answer["state"], "offset": answer["offset"]} for judge, answer in told.items()}
    return FieldResult(name(guess), guess["verdict"], guess["offset"], seen, outcome,
                       tuple(guess["candidates"]), reason)


def _outcome(guess: Answer, judges: Mapping[str, Answer], collector_runs: bool) -> tuple[Outcome, str]:
    if guess["state"] == "unknown":
        why = guess["reason"] or guess["verdict"]
        return (Outcome.UNKNOWN, why) if collector_runs else (Outcome.FAIL, f"the collector needs it: {why}")
    knowing = {judge: answer for judge, answer in judges.items() if answer["state"] != "unknown"}
    wrong = [f"{judge} says {_place(answer)}" for judge, answer in knowing.items() if not _same(guess, answer)]
    if wrong:
        return Outcome.FAIL, f"the guess says {_place(guess)}, {', '.join(wrong)}"
    return (Outcome.PASS, "") if knowing else (Outcome.UNKNOWN, "no judge knows it")


def _same(one: Answer, other: Answer) -> bool:
    return all(one[key] == other[key] for key in ("state", "offset", "bit_offset", "width"))


def _place(answer: Answer) -> str:
    if answer["state"] != "known":
        return "it is not there"
    bit = "" if answer["bit_offset"] is None else f" bit {answer['bit_offset']}"
    return f"{answer['offset']}{bit}, {answer['width']} bytes"
