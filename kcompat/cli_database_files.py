"""What `kcompat db` does with files: import and merge, export, pull; and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kcompat.cli_database import opened
from kcompat.cli_errors import say
from kcompat.cli_output import is_standard_output, to_json
from kcompat.errors import BadInput, KcompatError, Missing
from kcompat.regular import FAULT
from offset_db.db import Database
from offset_db.exchange import Format, give, take_in, write_whole
from offset_db.exchange_merge import Absorbed, merge
from offset_db.exchange_pull import checksum, discard, fetch, replace
from offset_db.files import default_path
from offset_db.queries import counted, one


@dataclass(frozen=True, slots=True)
class Imported:
    """What came out of one file; each fault is one line, and was said when it happened."""

    file: str
    absorbed: Absorbed
    faults: tuple[str, ...] = ()


def import_all(chosen: Path | None, files: Sequence[Path]) -> tuple[Imported, ...]:
    """Every file in turn. One that is not what it should be does not stop the rest."""
    with Database.open(chosen or default_path()) as db:
        return tuple(_import(db, path) for path in files)


def _import(db: Database, path: Path) -> Imported:
    faults: list[str] = []

    def told(error: KcompatError) -> None:
        say(str(error))
        faults.append(str(error))

    try:
        absorbed = take_in(db, path, told)
    except (BadInput, Missing) as error:
        if isinstance(error, Missing) and db.read_only:
            raise
        told(error)
        absorbed = Absorbed()
    return Imported(str(path), absorbed, tuple(faults))


def merge_one(chosen: Path | None, other: Path) -> Imported:
    if not other.exists():
        raise BadInput(other, "there is no such file")
    if not other.is_file():
        raise BadInput(other, FAULT)
    with Database.open(chosen or default_path()) as db:
        if db.path == other.resolve():
            raise BadInput(other, "the database itself")
        with Database.open(other, read_only=True) as theirs:
            return Imported(str(other), merge(db, theirs))


def exported(chosen: Path | None, form: str, kernel: str | None) -> bytes:
    with opened(chosen) as db:
        return give(db, cast(Format, form), one(db, kernel) if kernel else None)


def export_to(output: Path, data: bytes, form: str, *, as_json: bool) -> str | bytes:
    """Writes the file, and what to print of it; of what is standard output, as /dev/stdout, the data and no more."""
    if is_standard_output(output):
        return data
    write_whole(output, data)
    if as_json:
        return to_json({"file": str(output), "format": form, "bytes": len(data)})
    return f"{output}: {len(data)} bytes\n"


def pull_one(chosen: Path | None, url: str, sha256: str | None, sums: Path | None, *, merged: bool) -> Imported:
    path = (chosen or default_path()).resolve()
    fetched = fetch(url, checksum(sha256, sums, url), path)
    try:
        if merged:
            with Database.open(path) as db:
                return Imported(url, take_in(db, fetched))
        replace(path, fetched)
        with opened(path) as db:
            return Imported(url, Absorbed(*counted(db)))
    finally:
        discard(fetched)


def imported_json(done: Sequence[Imported]) -> str:
    return to_json({"files": [{"file": i.file, "kernels": i.absorbed.kernels, "answers": i.absorbed.answers,
                               "faults": list(i.faults)} for i in done]})


def imported_text(done: Sequence[Imported]) -> str:
    return "".join(f"{i.file}: {i.absorbed.kernels} kernels, {i.absorbed.answers} answers\n" for i in done
                   if i.absorbed.kernels or not i.faults)
