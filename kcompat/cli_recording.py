"""`kcompat guess --record` and `--replay`: a guess in a file, and a guess out of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kcompat.cli_sources import Answer
from kcompat.errors import BadInput
from kcompat.offsets import Offsets, State

if TYPE_CHECKING:
    from guessers.guess import Guess


def record(path: Path, guess: Guess, *, mask: bool) -> str:
    """Writes the file; what there is to say of it. Raises BadInput when it cannot be written."""
    from guessers.guess import replay
    from guessers.recording import dumps, loads, save

    places = {field: o.offset for field, o in guess.offsets.known().items() if o.offset is not None}
    data = dumps(guess.recording, places if mask else None)
    save(path, data)
    again = replay(loads(data))
    lost = [f.name for f, o in guess.offsets.items() if not again.offsets[f].same_place(o)]
    told = f"{path}: {len(data) / 1000:.0f} kB" + ", kernel addresses masked" * mask
    # By accident a number of ours beside another can look like an address.
    return told + (f"; a replay does not tell {', '.join(lost)}" if lost else "")


def replayed(path: Path) -> Answer:
    """The recorded guess, made again. Raises BadInput for a file that is no recording, or contradicts itself."""
    from guessers.guess import replay
    from guessers.recording import load

    recording = load(path)
    try:
        guess = replay(recording)
    except (LookupError, ValueError, ArithmeticError) as error:
        raise BadInput(path, f"a recording that contradicts itself: {type(error).__name__}: {error}") from error
    return Answer(recording.kernel, guess.offsets, _origin(path, recording.kernel.release, guess.offsets),
                  guess.stats.as_json(), guess)


def _origin(path: Path, release: str, offsets: Offsets) -> str:
    told = sum(o.state is not State.UNKNOWN for o in offsets.values())
    unknown = f"; {len(offsets) - told} unknown" * (told < len(offsets))
    return f"{told} fields of {release} from {path}{unknown}"
