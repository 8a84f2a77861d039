"""What kcompat gives to others and takes from them: each form told by its content, read whole before it counts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from kcompat.btf import BtfResolver
from kcompat.btf_sections import MAGICS
from kcompat.elf import MAGIC as ELF_MAGIC
from kcompat.errors import BadInput, Missing, Usage
from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel
from kcompat.regular import is_regular, open_regular
from offset_db import exchange_btf, exchange_btfhub, exchange_datadog, exchange_header, exchange_jsonl, rows
from offset_db.db import Database
from offset_db.exchange_merge import Absorbed, absorb, absorb_whole, merge
from offset_db.queries import everything
from offset_db.rows import Remembered, Stored

Format = Literal["jsonl", "header", "datadog", "btf"]
FORMATS: tuple[Format, ...] = get_args(Format)

_SQLITE_MAGIC = b"SQLite format 3\0"
# Enough to tell every form, and larger than any first line of ours.
_HEAD = 4096


def take_in(db: Database, path: Path, progress: Callable[[BadInput], None] | None = None) -> Absorbed:
    """Import a file, or a directory of BTFHub's archives. Raises BadInput, and then nothing of the file was taken.

    In a directory one bad archive does not stop the rest: it is told to `progress`.
    """
    if path.resolve() == db.path:
        raise BadInput(path, "the database itself")
    if path.is_dir():
        return absorb(db, _tree(path, progress))
    head = _head(path)
    if head.startswith(_SQLITE_MAGIC):
        with Database.open(path, read_only=True) as other:
            return merge(db, other)
    reader = _reader(head)
    if reader is None:
        raise BadInput(path, "none of what can be imported: JSON Lines of ours, a database of ours, DataDog's "
                             "constants, BTF, a BTFHub archive or directory")
    return absorb_whole(db, reader(path))


def give(db: Database, form: Format, kernel: Remembered | None) -> bytes:
    """The database, or one kernel of it, in that form."""
    if form == "btf":
        if kernel is None:
            raise Usage("BTF is of one kernel: name it; `kcompat db kernels` lists what there is")
        return exchange_btf.render(kernel)
    held: Iterable[Remembered] = everything(db) if kernel is None else (kernel,)
    if form == "jsonl":
        return "".join(exchange_jsonl.lines(held)).encode()
    return (exchange_datadog.render(held) if form == "datadog" else exchange_header.render(held)).encode()


def write_whole(path: Path, data: bytes) -> None:
    """The file appears complete or not at all. A device or pipe stays what it is: it is opened and written to."""
    try:
        if _stays(file := _behind(path)):
            # As a shell's >> does: what /proc leads to may be a file that somebody has begun.
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), "wb") as there:
                there.write(data)
        else:
            _replace(file, data)
    except PermissionError as error:
        raise Missing(f"{path}: {error.strerror}; name a file you may write") from error
    except OSError as error:
        raise BadInput(path, error.strerror or str(error)) from error


def _stays(path: Path) -> bool:
    """Whether something is there that a file must not take the place of."""
    return path.is_symlink() or (path.exists() and not is_regular(path.stat().st_mode))


def _behind(path: Path) -> Path:
    """Where links lead. One of /proc's, as /dev/stdout in the end is, has no path of what it leads to: it stays."""
    with suppress(FileNotFoundError):
        path.stat()  # raises where links lead in a circle
    while path.is_symlink() and not path.parent.resolve().is_relative_to("/proc"):
        path = path.parent / path.readlink()
    return path


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(_HEAD)
    except OSError as error:
        raise BadInput(path, error.strerror or str(error)) from error


def _reader(head: bytes) -> Callable[[Path], Iterator[Remembered]] | None:
    """How to read a file that begins so."""
    text = head.lstrip()
    if text.startswith(b'{"format"'):
        return _jsonl
    if text.startswith(b"{"):
        return _datadog
    if head.startswith(exchange_btfhub.XZ_MAGIC):
        return _archive
    if head[:2] in MAGICS or head.startswith(ELF_MAGIC):
        return _btf
    return None


def _jsonl(path: Path) -> Iterator[Remembered]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from exchange_jsonl.parse(file, path)
    except UnicodeDecodeError as error:
        raise BadInput(path, f"not UTF-8: {error.reason} at byte {error.start}") from error


def _datadog(path: Path) -> Iterator[Remembered]:
    try:
        yield from exchange_datadog.parse(path.read_text(encoding="utf-8"), path, rows.now())
    except UnicodeDecodeError as error:
        raise BadInput(path, f"not UTF-8: {error.reason} at byte {error.start}") from error


def _archive(path: Path) -> Iterator[Remembered]:
    yield exchange_btfhub.read(path, rows.now())


def _btf(path: Path) -> Iterator[Remembered]:
    at, kernel = rows.now(), Kernel.from_btf(path)
    offsets = BtfResolver(path).resolve(kernel, CATALOGUE)
    yield Remembered(kernel, at, at, tuple(Stored(o, at) for o in offsets))


def _tree(directory: Path, progress: Callable[[BadInput], None] | None) -> Iterator[Remembered]:
    found = exchange_btfhub.archives(directory)
    if not found:
        raise BadInput(directory, f"no *{exchange_btfhub.SUFFIX} below it")
    for path in found:
        try:
            yield exchange_btfhub.read(path, rows.now())
        except BadInput as error:
            if progress is None:
                raise
            progress(error)
