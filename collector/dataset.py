"""What a dataset is to the pipeline: a row of its table, and what the row starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from collector.config import Options
from collector.datasets.hooks import BACKENDS, Backend
from collector.enrich.domains import Domains
from collector.enrich.translations import Lender, Means
from collector.record import Record
from kcompat import probe
from kcompat.errors import Missing, Unsupported
from kcompat.fields import Field
from kcompat.hook_status import HookStatus
from kcompat.load import Loaded
from kcompat.offsets import Offsets


@dataclass(slots=True)
class Setup:
    """What datasets are started with; `domains` and `translations` are what they have in common: one fills
    the first, others ask it; the second is there as long as somebody has borrowed it.

    `options` are replaced between two flushes when the configuration is read again: they are asked when they are
    used, not once. Keys of the kind Restart stay as they were.
    """

    options: Options
    offsets: Offsets
    version_code: int
    backends: Sequence[Backend] = BACKENDS
    domains: Domains = field(default_factory=Domains)
    translations: Lender = field(default_factory=Lender)

    def means(self) -> Means:
        """What `translations` are borrowed with."""
        return Means(self.offsets, self.version_code, self.backends)


class Running(Protocol):
    """A started dataset: it collects until `close`."""

    @property
    def how(self) -> str:
        """How it sees what it counts, in two words for the last line of a run."""

    @property
    def hooks(self) -> Sequence[HookStatus]:
        """What became of each program at each hook; packet sockets and the like are hooks too."""

    @property
    def loaded(self) -> Loaded | None:
        """Its programs and maps in the kernel, if it has any: for what they cost and how full they are."""

    @property
    def losses(self) -> Mapping[str, int]:
        """What was not counted, by what it is: numbers that only grow."""

    @property
    def left_out(self) -> Counter[str]:
        """What was seen and is in no record, by reason; only `overflow` is a loss."""

    def flush(self, time_ns: int) -> Sequence[Record]:
        """Everything since the last flush, once; `time_ns` since the epoch stamps what has no time of its own."""

    def sample(self, one_of: int) -> bool:
        """From now on counts one flow of so many, a power of two, and says so; 1: all. False: it counts all or none."""

    def close(self) -> None: ...


def require(name: str, trial: Callable[[], str]) -> None:
    """Raises Missing or Unsupported where a trial of kcompat.probe shows that the dataset cannot run."""
    try:
        trial()
    except probe.Denied as error:
        raise Missing(f"{name} is off: {error.strerror}: run it with sudo") from error
    except OSError as error:
        raise Unsupported(f"{name} is off: {error.strerror}") from error


def nothing(_: Options) -> None:
    """Of a dataset that has nothing to make ready."""


def no_fields() -> Sequence[Field]:
    """Of a dataset that needs no offsets, so that it runs where no field is known."""
    return ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """One row. `start` raises KcompatError where it cannot run; `wanted` are the fields its programs can use.

    `render` is its C as it will be compiled, None where it has none: it raises UnknownField when an indispensable
    offset is not known. `prepare` returns at once; what it begins is done while the kernel judges programs.
    """

    name: str
    start: Callable[[Setup], Running]
    wanted: Callable[[], Sequence[Field]] = no_fields
    render: Callable[[Offsets, Options], str] | None = None
    prepare: Callable[[Options], None] = nothing
