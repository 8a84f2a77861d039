"""A guess as a file: all that its solver consumed, to be solved again elsewhere, without root and without the kernel.

The format: xz (which checks itself) of one JSON object, ``{"format": "kcompat guess", "version": 1, "masked": bool,
"recording": {...}}``. The recording is `Recording` as codec.py writes it, which is the definition: a change of any
dataclass in it is a new version. ``xz -dc FILE | jq`` shows all of it.
"""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from guessers.codec import decode, encode
from guessers.haul import Haul
from guessers.masking import Pseudonyms, lowest_of, told_apart
from guessers.setting import Setting
from kcompat.errors import BadInput, KcompatError
from kcompat.fields import Field
from kcompat.kernel import Kernel
from kcompat.regular import open_regular

FORMAT, VERSION = "kcompat guess", 1
_LONGEST = 16 << 20  # of the JSON, in bytes: a round of a guess makes one or two million
_MEMORY = 64 << 20  # what xz may use to unpack it
_PRESET = 3  # of xz: in an emulated machine time counts, and the best it can do is a seventh smaller


@dataclass(frozen=True, slots=True)
class Recording:
    """One guess: of which kernel, what was seen, under what conditions, in how many rounds."""

    kernel: Kernel
    haul: Haul
    setting: Setting
    rounds: int


def dumps(recording: Recording, masked: Mapping[Field, int] | None = None) -> bytes:
    """The file's bytes. With `masked`, the offsets that were guessed, a pseudonym stands for each kernel address."""
    if masked is None:
        told = encode(recording)
    else:
        haul, ours = told_apart(recording.haul, masked)
        told = encode(replace(recording, haul=haul), Pseudonyms(lowest_of(haul), ours=ours))
    body = {"format": FORMAT, "version": VERSION, "masked": masked is not None, "recording": told}
    return lzma.compress(json.dumps(body, separators=(",", ":")).encode(), check=lzma.CHECK_SHA256, preset=_PRESET)


def loads(data: bytes) -> Recording:
    """Raises ValueError, with the reason, for what is no recording of this version."""
    try:
        told = json.loads(_unpacked(data))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("no recording of a guess: not JSON") from error
    try:
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise ValueError("no recording of a guess")
        if told.get("version") != VERSION:
            raise ValueError(f"a recording of version {told.get('version')!r:.20}, and this is version {VERSION}")
        recording: Recording = decode(Recording, told.get("recording"))
    except KcompatError as error:
        raise ValueError(f"a recording by another kcompat: {error}") from error
    return recording


def _unpacked(data: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY)
    try:
        body = unpacker.decompress(data, _LONGEST + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"no recording of a guess, or a damaged one: {error}") from error
    if len(body) > _LONGEST:
        raise ValueError(f"no recording of a guess: longer than {_LONGEST >> 20} MB when unpacked")
    if not unpacker.eof:
        raise ValueError("a recording that was cut off")
    return body


def save(path: Path, data: bytes) -> None:
    """Writes the file, whole or not at all, for its owner only. Raises BadInput where it cannot."""
    if path.exists() and not path.is_file():
        raise BadInput(path, "not a regular file")
    unfinished = path.with_name(f".{path.name}.{random.Random().getrandbits(32):08x}")
    try:
        try:
            unfinished.touch(0o600, exist_ok=False)
            unfinished.write_bytes(data)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(path, error.strerror or str(error)) from error


def load(path: Path) -> Recording:
    """Raises BadInput for a file that cannot be read or is no recording."""
    try:
        with open_regular(path) as file:
            return loads(file.read(_LONGEST))
    except OSError as error:
        raise BadInput(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise BadInput(path, str(error)) from error
