"""Where a run leaves what it found: results as JSON, an offset database, a log and a recorded guess per kernel."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ci.fetch import cache_dir
from ci.results import MatrixResult


class StoreError(Exception):
    """A file of results cannot be read; the message names it and the fault."""


@dataclass(frozen=True)
class Store:
    """A directory of results."""

    directory: Path

    @property
    def results(self) -> Path:
        return self.directory / "matrix.json"

    @property
    def database(self) -> Path:
        return self.directory / "offsets.db"

    @property
    def recordings(self) -> Path:
        return self.directory / "recordings"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"


def default_store() -> Store:
    return Store(cache_dir() / "matrix")


def save(result: MatrixResult, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(result.as_json(), file, indent=1)
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> MatrixResult:
    """What `save` wrote, there or in the store of that name. Raises StoreError."""
    path = Store(path).results if path.is_dir() else path
    try:
        return MatrixResult.from_json(json.loads(path.read_text()))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; `python -m ci run` writes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: no results of a run: {type(error).__name__}: {error}") from error
