"""A run as one HTML file that asks for nothing: no script, no network, and a guest's words only as text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ci.report_facts import asked, check_names, count, failed_tests, why
from ci.report_shifts import Cell, Picture, picture
from ci.results import KernelResult, MatrixResult, worst
from ci.verdict import Outcome, printable

TEMPLATES = Path(__file__).resolve().parent / "templates"
# So few kernels leave most of the page empty: the structs stand side by side then.
_NARROW = 4
# A guest that reports a novel does not make the report one.
_LONGEST = 2000
_SLUGS = {Outcome.PASS: "pass", Outcome.FAIL: "fail", Outcome.UNKNOWN: "unknown"}
_MARKS = {Outcome.PASS: "✓", Outcome.FAIL: "✗", Outcome.UNKNOWN: "?"}
# As many as there are colours for; what takes least shares the last.
_STEPS = 9


@dataclass(frozen=True)
class Segment:
    """A piece of a kernel's bar, in per cent of the longest kernel's time."""

    name: str
    colour: int
    start: float
    width: float
    seconds: float


def html(result: MatrixResult) -> str:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              finalize=_tame, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"seconds": _seconds, "signed": _signed, "slug": _SLUGS.__getitem__,
                            "mark": _MARKS.__getitem__, "level": _level, "words": _words}
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    drawn = picture(result.kernels)
    steps = _step_names(result.kernels)
    return environment.get_template("report.html.j2").render(
        result=result,
        outcomes=[(outcome, sum(kernel.outcome is outcome for kernel in result.kernels)) for outcome in Outcome],
        headline=_headline(result.kernels),
        worst=worst(kernel.outcome for kernel in result.kernels),
        fields=count(result.kernels),
        count=count,
        checks=check_names(result.kernels),
        by_name={kernel.name: {check.name: check for check in asked(kernel)} for kernel in result.kernels},
        asked=asked,
        why=why,
        picture=drawn,
        sections=_sections(drawn),
        indices={column.kernel.name: index for index, column in enumerate(drawn.columns)},
        tables=[[group] for group in drawn.groups] if len(drawn.columns) <= _NARROW else [drawn.groups],
        narrow=len(drawn.columns) <= _NARROW,
        steps=steps,
        bars={kernel.name: _bar(kernel, steps, _longest(result.kernels)) for kernel in result.kernels},
        longest=_longest(result.kernels),
        tests=failed_tests,
        style=Markup(style),
        # The one style there is, by its hash: one that got in with a guest's words would not count.
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        PASS=Outcome.PASS,
    )


def _tame(value: object) -> object:
    """Applied to whatever the template prints: control and bidirectional characters go, and too long is cut."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = printable(value[: _LONGEST + 1])
    return text if len(value) <= _LONGEST else f"{text[:_LONGEST]}…"


def _headline(kernels: Sequence[KernelResult]) -> str:
    outcomes = [kernel.outcome for kernel in kernels]
    if not outcomes:
        return "No kernel was run"
    if len(outcomes) == 1:
        return {Outcome.PASS: "The kernel passes", Outcome.FAIL: "The kernel fails",
                Outcome.UNKNOWN: "The kernel could not be told"}[outcomes[0]]
    passed, failed, untold = (outcomes.count(outcome) for outcome in Outcome)
    if passed == len(outcomes):
        return f"All {passed} kernels pass"
    said = [f"{passed} of {len(outcomes)} kernels pass"]
    said += [f"{failed} fail{'s' if failed == 1 else ''}"] if failed else []
    return ", ".join(said + ([f"{untold} could not be told"] if untold else []))


def _sections(drawn: Picture) -> list[tuple[str, int]]:
    """The headings above the columns, and how many each spans."""
    spans: dict[str, int] = {}
    for column in drawn.columns:
        spans[column.section] = spans.get(column.section, 0) + 1
    return list(spans.items())


def _steps(kernel: KernelResult) -> dict[str, float]:
    """Where the time went, boot first; what no step accounts for is in the end called the rest."""
    boot = {} if kernel.boot_s is None or "boot" in kernel.steps_s else {"boot": kernel.boot_s}
    steps = {**boot, **kernel.steps_s}
    rest = (kernel.total_s or 0.0) - sum(steps.values())
    return {**steps, "the rest": rest} if rest >= 0.05 else steps


def _step_names(kernels: Sequence[KernelResult]) -> list[str]:
    names = dict.fromkeys(name for kernel in kernels for name in _steps(kernel) if name != "the rest")
    return [*names, "the rest"]


def _longest(kernels: Sequence[KernelResult]) -> float:
    return max((sum(_steps(kernel).values()) for kernel in kernels), default=0.0) or 1.0


def _bar(kernel: KernelResult, names: Sequence[str], longest: float) -> list[Segment]:
    segments, at = [], 0.0
    for name, seconds in _steps(kernel).items():
        width = 100 * max(0.0, seconds) / longest
        colour = _STEPS if name == "the rest" else min(names.index(name), _STEPS - 1)
        segments.append(Segment(name, colour, round(at, 3), round(width, 3), seconds))
        at += width
    return segments


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds >= 600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.1f} s"


def _signed(delta: int) -> str:
    """With a real minus: it is as wide as the plus above it."""
    return f"+{delta}" if delta > 0 else f"−{-delta}"


def _level(cell: Cell) -> str:
    """Which way and how far, in three steps: a word or so, a cache line or so, further."""
    if cell.kind != "moved" or cell.delta is None:
        return ""
    size = abs(cell.delta)
    return f"{'up' if cell.delta > 0 else 'down'}{1 if size <= 8 else 2 if size <= 64 else 3}"


def _words(cell: Cell) -> str:
    """What stands beneath the offset, so that no meaning is colour alone."""
    guess = cell.field.offset if cell.field else None
    if cell.kind == "wrong":
        if guess == cell.place:
            return "≠size"
        return "≠none" if guess is None else f"≠{guess}"
    if cell.kind == "ambiguous":
        return f"1 of {len(cell.field.candidates)}" if cell.field and cell.field.candidates else "ambig."
    if cell.kind == "unknown":
        return "untold"
    if cell.kind == "new":
        return "new"
    return _signed(cell.delta) if cell.kind == "moved" and cell.delta else ""

