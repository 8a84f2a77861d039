"""`kcompat db`: what is remembered of which kernel, and where sources disagree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcompat.cli_output import cells, drawn, place, to_json
from kcompat.errors import KcompatError
from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel
from kcompat.printable import printable
from offset_db.db import Database
from offset_db.files import default_path
from offset_db.rows import Disagreement, Remembered, Stored

if TYPE_CHECKING:
    from rich.console import Console


def shown(chosen: Path | None, kernel: str | None) -> tuple[Remembered, ...]:
    """What is held of that kernel, or of all. Raises KcompatError when there is nothing of it."""
    with opened(chosen) as db:
        if kernel is not None:
            found = db.show(kernel)
            if not found:
                raise KcompatError(f"{db.path}: holds nothing of kernel {kernel!r}; `kcompat db show` lists what "
                                   "there is")
            return found
        return tuple(r for k in db.kernels() for r in db.show(k.key))


def disputed(chosen: Path | None) -> tuple[Disagreement, ...]:
    with opened(chosen) as db:
        return db.disagreements()


def opened(chosen: Path | None, *, read_only: bool = False) -> Database:
    """The database, which must be there; it is asked, so a damaged one stays where it is."""
    path = chosen or default_path()
    if not is_there(path):
        raise KcompatError(f"{path}: no database there yet; `kcompat resolve` or `sudo kcompat guess` makes one")
    return Database.open(path, read_only=read_only, heals=False)


def is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise KcompatError(f"{path}: {error.strerror}") from error


def show_json(found: tuple[Remembered, ...]) -> str:
    return to_json({"kernels": [{"kernel": r.kernel.as_json(), "first_seen": r.first_seen, "last_seen": r.last_seen,
                                 "fields": [_stored_json(s) for s in r.stored]} for r in found]})


def _stored_json(stored: Stored) -> dict[str, Any]:
    return stored.offset.as_json() | {
        "recorded_at": stored.recorded_at, "verified_at": stored.verified_at,
        "quarantined_at": stored.quarantined_at, "quarantine_reason": stored.quarantine_reason}


def show_text(found: tuple[Remembered, ...], *, fields: bool) -> str:
    if not found:
        return "nothing is remembered yet\n"
    return "\n".join(_fields_text(r) for r in found) if fields else _kernels_text(found)


def _kernels_text(found: tuple[Remembered, ...]) -> str:
    def draw(console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for heading in ("release", "machine", "build-id", "fields", "last seen"):
            table.add_column(heading, overflow="ellipsis" if heading == "build-id" else "fold",
                             no_wrap=heading != "release")
        for r in found:
            counts = Counter(s.offset.source for s in r.stored)
            table.add_row(*cells(r.kernel.release, r.kernel.machine, short(r.kernel),
                                 ", ".join(f"{n} {source}" for source, n in sorted(counts.items())), r.last_seen[:10]))
        console.print(table)

    return drawn(draw)


def short(kernel: Kernel) -> str:
    return kernel.key[:12]


def _fields_text(remembered: Remembered) -> str:
    kernel = remembered.kernel

    def draw(console: Console) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for heading in ("field", "offset", "source", "recorded", "verified", ""):
            table.add_column(heading, justify="right" if heading == "offset" else "left", no_wrap=heading != "")
        order = {field: at for at, field in enumerate(CATALOGUE)}
        for s in sorted(remembered.stored, key=lambda s: (order[s.offset.field], s.offset.source)):
            state = Text("quarantined", "red") if s.quarantined_at else Text(
                "" if s.offset.offset is not None else str(s.offset.verdict), "yellow")
            table.add_row(*cells(s.offset.field.name, place(s.offset), s.offset.source, s.recorded_at[:10],
                                 (s.verified_at or "-")[:10], state))
        console.print(table)

    return f"{printable(f'{kernel.release} {kernel.machine}')}\nbuild-id {printable(kernel.key)}\n\n{drawn(draw)}"


def disagreements_json(found: tuple[Disagreement, ...]) -> str:
    return to_json({"disagreements": [
        {"kernel": d.kernel.as_json(), "struct": d.field.struct, "member": d.field.member,
         "answers": [o.as_json() for o in d.answers.values()]} for d in found]})


def disagreements_text(found: tuple[Disagreement, ...]) -> str:
    if not found:
        return "no disagreements\n"

    def draw(console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for heading in ("kernel", "build-id", "field", "who says what"):
            table.add_column(heading, overflow="fold")
        for d in found:
            table.add_row(*cells(d.kernel.release, short(d.kernel), d.field.name,
                                 ", ".join(f"{source}: {place(o) if o.offset is not None else o.state}"
                                           for source, o in d.answers.items())))
        console.print(table)

    return drawn(draw)
