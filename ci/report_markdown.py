"""A run as a page of docs, kernel-matrix.md: what passed where, on which build, and how long it took."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import median

from ci.report_facts import asked, count, why
from ci.results import KernelResult, MatrixResult
from ci.verdict import Outcome, printable

_HEAD = """\
# The kernel matrix

Written by `python -m ci report --markdown FILE` of what `python -m ci run` found; do not edit.

Run of {started}{revision}: {kernels} kernels in {minutes:.0f} minutes, {outcomes}.
Of {fields} offsets judged {right} are right, {wrong} wrong, {ambiguous} ambiguous; {unknown} could not be told.
The judge is the kernel's own BTF, DWARF or headers, which the guess does not see.

{host}
"""
_PICTURE = """
<picture>
  <source media="(prefers-color-scheme: dark)" srcset="{dark}">
  <img src="{light}" alt="The HTML report: kernels by checks, and every field's offset across kernels">
</picture>
"""
_TITLES = {"debian": "Debian's kernels", "ubuntu": "Ubuntu's kernels", "built": "Kernels of our own",
           "given": "Given kernels"}
_COLUMNS = ("kernel", "release", "machine", "judge", "right", "wrong", "ambiguous", "can't tell", "checks", "boot s",
            "total s")


def markdown(result: MatrixResult, screenshot: str | None) -> str:
    parts = [_head(result)]
    if screenshot:
        parts.append(_PICTURE.format(light=screenshot, dark=screenshot.replace(".png", "-dark.png")))
    for origin, title in _TITLES.items():
        kernels = [kernel for kernel in result.kernels if kernel.origin == origin]
        if kernels:
            parts += [f"\n## {title}\n\n", _row(_COLUMNS), _row(["---"] * 4 + ["---:"] * 4 + ["---"] + ["---:"] * 2),
                      *(_row(_cells(kernel)) for kernel in kernels)]
    parts += _builds(result.kernels) + _times(result.kernels) + _reasons(result.kernels)
    return "".join(parts)


def _head(result: MatrixResult) -> str:
    outcomes = [kernel.outcome for kernel in result.kernels]
    counts = count(result.kernels)
    return _HEAD.format(
        started=_safe(result.started),
        revision=f", revision {_safe(_short(result.revision))}" if result.revision else "",
        kernels=len(outcomes), minutes=result.seconds / 60, fields=sum(counts.values()),
        outcomes=", ".join(f"{outcomes.count(outcome)} {outcome.value}" for outcome in Outcome),
        host="\n".join(f"- {_safe(name)}: {_safe(value)}" for name, value in result.host.items()), **counts)


def _short(revisions: str) -> str:
    """Of a hash what tells it apart; that the tree was another is kept."""
    told = (revision.partition("-") for revision in revisions.split(", "))
    return ", ".join(f"{name[:12]}{dash}{more}" for name, dash, more in told)


def _cells(kernel: KernelResult) -> list[str]:
    counts = count([kernel])
    checks = asked(kernel)
    passed = sum(check.outcome is Outcome.PASS for check in checks)
    judges = sorted({name for f in kernel.fields for name, j in f.judges.items() if j.get("state") != "unknown"})
    return [kernel.name, kernel.release or "?", kernel.machine, ", ".join(judges) or "none",
            *(str(counts[name]) for name in ("right", "wrong", "ambiguous", "unknown")),
            f"{passed} of {len(checks)} pass", _seconds(kernel.boot_s), _seconds(kernel.total_s)]


def _builds(kernels: Sequence[KernelResult]) -> list[str]:
    """Which kernel it was exactly: a pattern finds another build next month."""
    known = [kernel for kernel in kernels if kernel.package or kernel.build_id]
    if not known:
        return []
    return ["\n## Builds\n\n", _row(("kernel", "package", "version", "build id")), _row(["---"] * 4),
            *(_row((k.name, k.package or "", k.version or "", k.build_id or "")) for k in known)]


def _times(kernels: Sequence[KernelResult]) -> list[str]:
    """The median over the kernels that passed: one that is lost at once is quick, and says nothing."""
    passed = [kernel for kernel in kernels if kernel.outcome is Outcome.PASS]
    times = {"boot": [k.boot_s for k in passed], "boot, tests and shutdown": [k.total_s for k in passed]}
    for kernel in passed:
        for step, seconds in kernel.steps_s.items():
            times.setdefault(f"step: {step}", []).append(seconds)
    rows = []
    for what, values in times.items():
        measured = [value for value in values if value is not None]
        if measured:
            rows.append(_row((what, str(len(measured)), _seconds(median(measured)), _seconds(max(measured)))))
    return ["\n## Where the time goes\n\n", _row(("what", "kernels", "median s", "longest s")),
            _row(("---", "---:", "---:", "---:")), *rows] if rows else []


def _reasons(kernels: Sequence[KernelResult]) -> list[str]:
    lists = {
        "What did not pass": [f"- {_safe(k.name)}, {k.outcome.value}: {_safe(why(k))}\n"
                              for k in kernels if k.outcome is not Outcome.PASS],
        "Notes": [f"- {_safe(k.name)}: {_safe(note)}\n" for k in kernels for note in k.notes],
    }
    return [text for title, lines in lists.items() if lines for text in (f"\n## {title}\n\n", *lines)]


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(_safe, cells)) + " |\n"


def _safe(text: object) -> str:
    """A guest's words, as words: no table cell, link, image or HTML of its own."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", printable(str(text)))
