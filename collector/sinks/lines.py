"""Sinks that write one line a record, to a file or to standard output."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Protocol

from collector.record import Record
from collector.sinks.files import FileStream, is_file, opened
from collector.sinks.sink import CLOSE_DEADLINE_S
from kcompat.errors import KcompatError

logger = logging.getLogger(__name__)


Encode = Callable[[Sequence[Record]], list[str]]
# Records of one write: lines of many more would take more memory than the records.
_AT_ONCE = 4096


class ByteStream(Protocol):
    """What a `LineSink` writes to: a file, a pipe, or standard output."""

    def write(self, data: bytes | memoryview, /) -> int | None: ...

    def close(self) -> None: ...


class LineSink:
    """Writes whole lines, many with one write(2) and no buffer behind it, so what was written outlives a crash.

    A write cut short (disk full) leaves half a line; the next batch then starts on a line of its own.
    """

    def __init__(self, name: str, stream: ByteStream, encode: Encode, *, torn: bool = False) -> None:
        self.name = name
        self.written = 0
        self.dropped = 0
        self._stream = stream
        self._encode = encode
        self._torn = torn
        self._failing = False

    def write(self, records: Sequence[Record]) -> None:
        for begin in range(0, len(records), _AT_ONCE):
            try:
                self._write(records[begin:begin + _AT_ONCE])
            except BrokenPipeError:
                self.dropped += max(0, len(records) - begin - _AT_ONCE)
                raise

    def _write(self, records: Sequence[Record]) -> None:
        lines = "".join([f"{line}\n" for line in self._encode(records)]).encode()
        if self._torn:
            lines = b"\n" + lines
        done, error = _write_all(self._stream, lines)
        whole = lines.count(b"\n", 0, done) - (self._torn and done > 0)
        self._torn = lines[done - 1] != ord("\n") if done else self._torn
        self.written += whole
        self.dropped += len(records) - whole
        if isinstance(error, BrokenPipeError):
            raise error
        if error and not self._failing:
            logger.warning("%s: %s; records are dropped until it takes them again", self.name, error.strerror)
        self._failing = error is not None

    def flush(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Nothing is ever held."""

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        self._stream.close()


class StdoutStream:
    """Standard output as it is at the time of each write, never closed, and left quiet when its reader has gone."""

    def write(self, data: bytes | memoryview, /) -> int:
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            _mute_stdout()
            raise
        return len(data)

    def close(self) -> None:
        """Not ours to close."""


def open_lines(spec: str, path: str, encode: Encode) -> LineSink:
    """Append to `path`; `-` is standard output."""
    if path == "-":
        return LineSink(spec, StdoutStream(), encode)
    return _opened(spec, Path(path), encode, FileStream)


def open_rotating(name: str, path: Path, encode: Encode, max_bytes: int, max_age_s: float,
                  keep: int) -> LineSink:
    """Append to `path`, which is moved aside when it is too large or too old; `keep` old files are kept."""
    from collector.sinks.rotating import RotatingStream
    if path.parent.resolve().is_relative_to("/proc") or path.parent.resolve() == Path("/dev"):
        raise KcompatError(f"{path}: the system's own is not rotated")
    return _opened(name, path, encode, lambda path, file: RotatingStream(path, file, max_bytes, max_age_s, keep))


def _opened(name: str, path: Path, encode: Encode, stream: Callable[[Path, FileIO], ByteStream]) -> LineSink:
    """Of a file `stream` is made; a pipe or a device is written to as it is."""
    try:
        torn = _ends_torn(path)
        file = opened(path)
        return LineSink(name, stream(path, file) if is_file(file) else file, encode, torn=torn)
    except OSError as error:
        raise KcompatError(f"{path}: cannot be opened for writing: {error.strerror}") from None


def _write_all(stream: ByteStream, data: bytes) -> tuple[int, OSError | None]:
    """Bytes written, and what stopped it."""
    done = 0
    rest = memoryview(data)
    try:
        while done < len(data):
            done += stream.write(rest[done:]) or 0
    except OSError as error:
        return done, error
    return done, None


def _ends_torn(path: Path) -> bool:
    """Whether a crash of an earlier writer left half a line. A file we may not read is taken to be whole."""
    with contextlib.suppress(OSError):
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as tail:
                tail.seek(-1, os.SEEK_END)
                return tail.read(1) != b"\n"
    return False


def _mute_stdout() -> None:
    """Let the interpreter's own flush at exit go nowhere, or it would complain of the broken pipe once more."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
