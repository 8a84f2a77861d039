"""What was read of kernel memory while pointers were followed, to be read once more when that memory is gone."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dc_field

from guessers.memory import ReadFault

Reader = Callable[[int, int], bytes]


@dataclass(slots=True)
class Tape:
    """One moment of kernel memory: whatever is read through it is read of the kernel once, and then off the tape.

    `held` has what stood at each address, by address and size; None where it could not be read.
    """

    held: dict[tuple[int, int], bytes | None] = dc_field(default_factory=dict)
    _kernel: Reader | None = dc_field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, read: Reader) -> Tape:
        return cls({}, read)

    def read(self, address: int, size: int) -> bytes:
        """As KernelMemory.read; raises ReadFault also for what nobody read before the tape was stopped."""
        if (address, size) not in self.held and self._kernel:
            try:
                self.held[address, size] = self._kernel(address, size)
            except ReadFault:
                self.held[address, size] = None
        if (data := self.held.get((address, size))) is None:
            raise ReadFault(address, errno.EFAULT)
        return data

    def stop(self) -> Tape:
        """From now on there is only the tape: what it was recorded of may be gone."""
        self._kernel = None
        return self


@dataclass(frozen=True, slots=True)
class Followed:
    """A search that follows pointers: over so many samples, the first there were, with what was read then."""

    samples: int
    tape: Tape
