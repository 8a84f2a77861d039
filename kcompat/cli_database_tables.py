"""What `kcompat db` prints of many kernels at once: lists, differences, the chart of a field's history, faults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from kcompat.cli_database import short
from kcompat.cli_output import cells, drawn, to_json
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from kcompat.printable import printable
from offset_db.exchange_names import NAMED
from offset_db.queries import Difference, Listed, Step, in_words, told
from offset_db.queries_verify import Fault

if TYPE_CHECKING:
    from rich.console import Console

_BAR = 12


def kernels_json(found: Sequence[Listed]) -> str:
    return to_json({"kernels": [one.kernel.as_json() | {"distribution": one.distribution, "known": one.known}
                                for one in found]})


def kernels_text(found: Sequence[Listed]) -> str:
    rows = [(one.kernel.release, one.kernel.machine, one.distribution or "-", _key(one.kernel), str(one.known))
            for one in found]
    return _table(("release", "machine", "distribution", "build-id", "known"), rows) if rows else "no such kernel\n"


def where_json(field: Field, found: Sequence[Kernel]) -> str:
    return to_json({"struct": field.struct, "member": field.member, "kernels": [k.as_json() for k in found]})


def where_text(found: Sequence[Kernel]) -> str:
    rows = [(k.release, k.machine, _key(k)) for k in found]
    return _table(("release", "machine", "build-id"), rows) if rows else "no such kernel\n"


def diff_json(before: Kernel, after: Kernel, found: Sequence[Difference]) -> str:
    def side(offset: Offset | None) -> dict[str, Any] | None:
        return offset.as_json() if offset else None

    return to_json({"before": before.as_json(), "after": after.as_json(), "fields": [
        {"struct": d.field.struct, "member": d.field.member, "before": side(d.before), "after": side(d.after)}
        for d in found]})


def diff_text(before: Kernel, after: Kernel, found: Sequence[Difference]) -> str:
    if not found:
        return "no differences\n"
    rows = [(d.field.name, told(d.before) if d.before else "-", told(d.after) if d.after else "-", _moved(d))
            for d in found]
    return _table(("field", before.release or short(before), after.release or short(after), "moved by"), rows)


def history_json(field: Field, steps: Sequence[Step]) -> str:
    return to_json({"struct": field.struct, "member": field.member, "history": [asdict(step) for step in steps]})


def history_text(field: Field, steps: Sequence[Step]) -> str:
    """A row a version and place; the bar is as long as the offset, so that a move stands out."""
    if not steps:
        return f"nothing is known of {field.name}\n"
    offsets = [step.offset for step in steps if step.offset is not None]
    lowest, highest = min(offsets, default=0), max(offsets, default=0)
    parts = []
    for machine, of_machine in groupby(steps, key=lambda step: step.machine):
        rows, before = list[tuple[str, ...]](), ""
        for step in of_machine:
            place = in_words(step.state, step.offset, step.bit_offset)
            moved = before not in ("", place)
            rows.append((step.version or "?", place, "moved" if moved else "", _bar(step.offset, lowest, highest),
                         str(step.kernels), step.last.removesuffix(f".{machine}")))
            before = place
        parts.append(f"{field.name} on {printable(machine) or 'unknown machines'}\n"
                     + _table(("version", "offset", "", "", "kernels", "up to"), rows))
    return "\n".join(parts)


def faults_json(found: Sequence[Fault]) -> str:
    return to_json({"faults": [{"kernel": f.kernel.as_json() if f.kernel else None, "source": f.source,
                                "fault": f.fault} for f in found]})


def faults_text(found: Sequence[Fault]) -> str:
    if not found:
        return "sound: the file, and every layout in it\n"
    told = (f"{f'{f.kernel.release or short(f.kernel)}, {f.source}: ' if f.kernel else ''}{f.fault}" for f in found)
    return "".join(f"{printable(one)}\n" for one in told)


def _key(kernel: Kernel) -> str:
    """A build-id cut short; where only a name is known, that."""
    return "by name" if kernel.key.startswith(NAMED) else short(kernel)


def _moved(difference: Difference) -> str:
    before, after = difference.before, difference.after
    if before is None or after is None or before.offset is None or after.offset is None:
        return ""
    return f"{after.offset - before.offset:+}"


def _bar(offset: int | None, lowest: int, highest: int) -> str:
    """From one block for the lowest offset to a full row for the highest; differences count, not the distance to 0."""
    if offset is None:
        return ""
    return "█" * (1 + round((offset - lowest) * (_BAR - 1) / max(highest - lowest, 1)))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def draw(console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for heading in headings:
            # A chart that is broken over lines is none.
            table.add_column(printable(heading), overflow="fold", no_wrap=not heading,
                             justify="right" if heading in ("offset", "kernels", "known", "moved by") else "left")
        for row in rows:
            table.add_row(*cells(*row))
        console.print(table)

    return drawn(draw)
