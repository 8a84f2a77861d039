"""What `kcompat` prints of offsets: tables under 80 columns, the JSON of the design, and a guess's evidence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, TextIO

from kcompat.errors import KcompatError
from kcompat.offsets import Offset, State
from kcompat.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from kcompat.cli_sources import Answer

COLUMNS = 79
# What tables and charts are drawn with, where there is nothing but ASCII.
_PLAIN = str.maketrans("█…", "#~")
STYLES = {"yes": "green", "no": "red", "can't tell": "yellow", "ok": "green", "absent": "cyan",
          "ambiguous": "red", "unverified": "red"}


def emit(text: str | bytes) -> None:
    """All standard output goes through here: whole, and a full disk is told in one line.

    Text is for people: what their terminal has no character for is drawn with others. Bytes are a file's.
    """
    out = _stdout()
    if out is None:
        if text:
            raise KcompatError("standard output is closed")
        return
    try:
        if isinstance(text, bytes):
            out.buffer.write(text)
        else:
            _write(out, text)
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        quiet_pipe()
        raise KcompatError(f"standard output: {error.strerror}") from error


def _write(out: TextIO, text: str) -> None:
    try:
        out.write(text)
    except UnicodeEncodeError:
        plain = text.translate(_PLAIN)
        out.write(plain.encode(out.encoding, "backslashreplace").decode(out.encoding))


def _stdout() -> TextIO | None:
    """None where whoever started us closed it."""
    return sys.stdout


def is_terminal() -> bool:
    """Whether standard output is one."""
    out = _stdout()
    return out is not None and out.isatty()


def is_standard_output(path: Path) -> bool:
    """Whether that is where standard output goes, by whatever name."""
    out = _stdout()
    try:
        return out is not None and os.path.samestat(path.stat(), os.fstat(out.fileno()))
    except (OSError, ValueError):
        return False


def quiet_pipe() -> None:
    """What is still buffered for a reader that has left goes nowhere, not into a second error at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def to_json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


def drawn(draw: Callable[[Console], None]) -> str:
    """What `draw` prints on a console, coloured only where standard output is a terminal."""
    from rich.console import Console

    console = Console(width=None if is_terminal() else COLUMNS, highlight=False, emoji=False, markup=False)
    with console.capture() as captured:
        draw(console)
    # rich pads cells to the column's width: no trailing blanks in what people paste into reports.
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def cells(*values: str | Text) -> Iterator[Text]:
    """What stands in a row, as it stands there: what a file says that was imported may be anything."""
    from rich.text import Text

    return (Text(printable(value)) if isinstance(value, str) else value for value in values)


def offsets_json(answer: Answer) -> str:
    """Design section 8."""
    return to_json({"kernel": answer.kernel.as_json(), "fields": [o.as_json() for o in answer.offsets.values()],
                    "stats": dict(answer.stats)})


def offsets_table(answer: Answer) -> str:
    def draw(console: Console) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for heading in ("field", "offset", "bytes", "source", "verdict", "confidence"):
            table.add_column(heading, justify="right" if heading in ("offset", "bytes", "confidence") else "left",
                             no_wrap=True)
        for o in answer.offsets.values():
            table.add_row(*cells(o.field.name, place(o), "" if o.width is None else str(o.width), o.source,
                                 Text(str(o.verdict), STYLES[o.verdict]), confidence(o)))
        console.print(table)

    return drawn(draw) + "".join(_notes(answer.offsets.values()))


def _notes(offsets: Iterable[Offset]) -> Iterator[str]:
    """Why, for each field without a place; a reason shared by many is said once."""
    reasons: dict[str, list[str]] = {}
    for o in offsets:
        if o.state is not State.KNOWN:
            reasons.setdefault(o.reason or "no reason given", []).append(o.field.name)
    for reason, names in reasons.items():
        yield "\n" + fill(", ".join(names), COLUMNS) + ":\n" + indented(reason)


def indented(text: str) -> str:
    return fill(_words(text), COLUMNS, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False) + "\n"


def _words(text: str) -> str:
    return printable(" ".join(text.split()))


def place(offset: Offset) -> str:
    """The offset for people: ``534``, ``536 bit 3``, or nothing."""
    if offset.offset is None:
        return "-"
    return f"{offset.offset}" if offset.bit_offset is None else f"{offset.offset} bit {offset.bit_offset}"


def confidence(offset: Offset) -> str:
    """One that is not quite 1 never looks like 1."""
    if not offset.confidence:
        return "-"
    return "1" if offset.confidence == 1 else f"{min(offset.confidence, 0.999999):.6f}".rstrip("0")


_EXPLAINED = {"hooks", "samples", "distinct_values", "candidates_by_sample", "candidates", "after_constraints",
              "runner_up", "held_out", "refuted_by_held_out", "expected_false_positives", "null_survivors",
              "share_of_object"}


def explain_json(answer: Answer) -> str:
    fields = [o.as_json() | {"evidence": dict(o.evidence)} for o in answer.offsets.values()]
    return to_json({"kernel": answer.kernel.as_json(), "fields": fields, "stats": dict(answer.stats)})


def explain_text(answer: Answer) -> str:
    """Everything that led to the verdict on the one field of `answer`."""
    (offset,) = answer.offsets.values()
    return "\n".join(_explained(answer, offset)) + "\n"


def _explained(answer: Answer, offset: Offset) -> Iterator[str]:
    field, evidence = offset.field, offset.evidence
    yield f"{field.name} ({field.c_type})"

    def line(label: str, text: object) -> str:
        return fill(_words(str(text)), COLUMNS, initial_indent=f"  {label:<16}", subsequent_indent=" " * 18,
                    break_on_hyphens=False)

    known = offset.offset is not None
    yield line("verdict", f"{offset.verdict}, confidence {confidence(offset)}")
    yield line("offset", f"{place(offset)}{f', {offset.width} bytes,' if known else ''} in struct {field.struct}")
    if offset.reason:
        yield line("reason", offset.reason)
    yield line("seen through", "; ".join(evidence.get("hooks", ())) or "no hook")
    on_stack = field.base.startswith("flowi")
    readers = ["the hook itself: it lives on a stack"] if on_stack else _readers(answer)
    yield line("read by", "; ".join(readers) or "no hook")
    if not evidence.get("samples"):
        yield line("samples", "none")
        return
    yield line("samples", f"{evidence['samples']} with a known value"
               + (f", {evidence['distinct_values']} different ones" if "distinct_values" in evidence else ""))
    if trail := evidence.get("candidates_by_sample"):
        yield line("candidates", f"{' '.join(map(str, shortened(trail)))} as samples were added")
    if "candidates" in evidence:
        yield line("", f"{_places(evidence['candidates'])} left by the samples")
    if "after_constraints" in evidence:
        yield line("", f"{_places(evidence['after_constraints'])} left by struct nesting and overlap")
    if "runner_up" in evidence:
        yield line("runner-up", "none" if evidence["runner_up"] is None else evidence["runner_up"])
    if "held_out" in evidence:
        yield line("held out", _held_out(evidence["held_out"], evidence.get("refuted_by_held_out") or (), known))
    if "share_of_object" in evidence:
        yield line("room", f"{evidence['share_of_object']:.0%} of the object is where it can lie")
    if "expected_false_positives" in evidence:
        yield line("by chance", f"{evidence['expected_false_positives']:.2g} places expected to pass every sample")
    if "null_survivors" in evidence:
        yield line("permutation", _null(evidence["null_survivors"]))
    for name, value in evidence.items():
        if name not in _EXPLAINED and value not in ({}, [], None):
            yield line(name.replace("_", " "), value)


def _held_out(count: int, refuted: Iterable[int], known: bool) -> str:
    if not count:
        return "no samples kept from the search"
    said = f"they refuted {_places(refuted)}" if refuted else "they confirm it" if known else "they refuted nothing"
    return f"{count} samples kept from the search; {said}"


def _null(survivors: int) -> str:
    if survivors < 0:
        return "not possible: the values do not differ enough to be exchanged"
    return f"with the values exchanged among the samples, {survivors or 'no'} places pass"


def _places(offsets: Iterable[int]) -> str:
    found = list(offsets)
    shown = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
    return f"{len(found)} ({shown})" if found else "none"


def shortened(numbers: list[int]) -> list[object]:
    """``3 3 3 3 2 2 1 1 1`` as ``3x4 2x2 1x3``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][0] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return [n if times == 1 else f"{n} (x{times})" for n, times in runs]


def _readers(answer: Answer) -> Iterator[str]:
    """Where the program that copies kernel memory for us is triggered."""
    for program, symbols in (answer.guess.hooks if answer.guess else {}).items():
        backend, _, name = program.partition("__")
        if name == "read":
            yield f"{backend} {', '.join(symbols)}"
