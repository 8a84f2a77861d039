"""Messages: what a system call makes of the buffers it is given, seen where a protocol is asked to send them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from guessers.pointers import shared, word
from guessers.search import Found, Sample, exchanged, search
from kcompat.fields import Field, find

NAME, ITER, IOV, UBUF, COUNT, NR_SEGS = map(find, (
    "msghdr.msg_name", "msghdr.msg_iter", "msghdr.msg_iter.iov", "msghdr.msg_iter.ubuf", "msghdr.msg_iter.count",
    "msghdr.msg_iter.nr_segs"))
MESSAGE_FAMILY = frozenset({NAME, ITER, IOV, UBUF})
_LONGEST = 128  # a message is 104 bytes
_NEAR = 32768  # no kernel stack is longer
# What was chosen at random in each message: address and length of two pieces or more, or a sockaddr's port and address.
_RANDOM_BITS = 40


@dataclass(frozen=True, slots=True)
class Sent:
    """A message of ours: by which call, in which pieces of user memory (address, length), to which ``sockaddr``."""

    call: str
    pieces: tuple[tuple[int, int], ...]
    name: bytes | None

    @property
    def iovec(self) -> bytes:
        """As an array of ``struct iovec``."""
        return b"".join(part.to_bytes(8, "little") for piece in self.pieces for part in piece)

    @property
    def length(self) -> int:
        return sum(length for _, length in self.pieces)


@dataclass(frozen=True, slots=True)
class Seen:
    """The ``struct msghdr`` it became, and what the pointer at `followed` led to."""

    sent: Sent
    address: int
    data: bytes
    followed: int | None
    lead: bytes | None


@dataclass(frozen=True, slots=True)
class Received:
    """The address of a ``struct msghdr`` that was filled, and of each ``struct iov_iter`` that was read into then.

    By which call: each lays its part of the stack out in its own way.
    """

    call: str
    address: int
    iterators: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Messages:
    """What a guess saw of messages: sent and looked at, sent and followed along a pointer, received."""

    plain: list[Seen]
    followed: list[Seen]
    received: list[Received]


def near(seen: Iterable[Seen]) -> set[int]:
    """Where all of them hold a pointer to something on their own stack."""
    return shared({at for at in range(0, len(s.data) - 7, 8)
                   if abs(word(s.data, at) - s.address) < _NEAR and not word(s.data, at) % 8}
                  for s in seen)


def samples(seen: Sequence[Seen]) -> list[Sample]:
    """Lengths, and numbers of pieces where there are several: one piece has other ways to come."""
    made = []
    for s in seen:
        values = {COUNT: (s.sent.length.to_bytes(8, "little"),)}
        if len(s.sent.pieces) > 1:
            values[NR_SEGS] = (len(s.sent.pieces).to_bytes(8, "little"),)
        made.append(Sample(s.data, values, None, s.sent.call))
    return made


def conclude_messages(messages: Messages) -> tuple[list[Found], list[Sample], dict[Field, str]]:
    """What the pointers of messages are, what else stands in them, and what is not there at all."""
    seen = [*messages.plain, *messages.followed]
    found = [*search_messages(seen), search_iter(messages.received)]
    iov = found[0].candidates
    wrapped = len(iov) == 1 and wraps_single_buffers(messages.followed, iov[0])
    absent = {UBUF: "this kernel wraps the one buffer of write(2) in an iovec"} if wrapped else {}
    return found, samples(seen), absent


def search_messages(seen: Sequence[Seen]) -> list[Found]:
    """The pointers of a message."""
    several = [s for s in seen if len(s.sent.pieces) > 1]
    iov = _led(IOV, several, lambda s: s.sent.iovec)
    name = _led(NAME, [s for s in seen if s.sent.name], lambda s: s.sent.name or b"")
    return [iov, name, _search_ubuf(seen, iov.candidates)]


def wraps_single_buffers(seen: Sequence[Seen], iov: int) -> bool:
    """Whether write(2) of one buffer comes as an iovec: then there is no ubuf."""
    written = [s for s in seen if s.sent.call == "write" and s.followed == iov]
    return len(written) > 1 and all(s.lead is not None and s.lead.startswith(s.sent.iovec) for s in written)


def _led(field: Field, seen: Sequence[Seen], target: Any) -> Found:
    """Where a pointer stands that leads to the `target` of every message it was followed in."""
    tried = sorted({s.followed for s in seen if s.followed is not None})
    if not tried:
        return Found(field, (), {"samples": 0})
    targets = [target(s) for s in seen]
    others = dict(zip(map(id, seen), exchanged(targets), strict=True))
    proved, null, count = [], 0, 0
    for at in tried:
        followed = [s for s in seen if s.followed == at]
        null += len(followed) > 1 and all(_leads(s, others[id(s)]) for s in followed)
        if len(followed) > 1 and all(_leads(s, target(s)) for s in followed):
            proved.append(at)
            count = len(followed)
    return Found(field, tuple(proved), _evidence(
        count or len(seen), len(set(targets)), [len(tried), len(proved)], len(tried) * 2.0**(-_RANDOM_BITS * count),
        null if len(set(targets)) > 1 else -1, "pointer to what the system call was given",
        f"{_RANDOM_BITS} random bits of each message, behind {len(tried)} pointers"))


def _leads(seen: Seen, target: bytes) -> bool:
    return seen.lead is not None and seen.lead.startswith(target)


def _search_ubuf(seen: Sequence[Seen], iov: tuple[int, ...]) -> Found:
    """The buffer's own address, in write(2) of one buffer: since 6.0 that never comes as an iovec.

    It is in one union with iov, so it is looked for there and nowhere else: the address may stand behind the message
    too, in a register the caller saved.
    """
    written = [Sample(s.data, {UBUF: (s.sent.pieces[0][0].to_bytes(8, "little"),)}) for s in seen
               if s.sent.call == "write"]
    found = search(UBUF, written)
    return Found(UBUF, tuple(at for at in found.candidates if at in iov) if len(iov) == 1 else (), found.evidence)


def search_iter(received: Sequence[Received]) -> Found:
    """How far into its message the iov_iter lies: the same in all of them."""
    if not received:
        return Found(ITER, (), {"samples": 0})
    distances = shared({i - r.address for i in r.iterators if 0 <= i - r.address < _LONGEST} for r in received)
    calls = len({r.call for r in received})
    tried = max(len(set(r.iterators)) for r in received)
    # A message lies anywhere on its stack, as far as an iterator knows that is not its own; but where it lies, it
    # lies again in the next message by the same call: the calls count, not the messages.
    expected = tried * (_LONGEST / _NEAR) * (8 / _NEAR) ** (calls - 1)
    return Found(ITER, tuple(sorted(distances)), _evidence(
        len(received), calls, [tried, len(distances)], expected, -1, "pointer into the message",
        f"one place of a stack's {_NEAR // 8} words, for each of {calls} system calls"))


def _evidence(samples: int, distinct: int, trail: list[int], expected: float, null: int, method: str,
              chance: str) -> dict[str, Any]:
    return {"samples": samples, "held_out": 0, "distinct_values": distinct, "candidates_by_sample": trail,
            "refuted_by_held_out": [], "expected_false_positives": expected, "null_survivors": null, "method": method,
            "chance": chance}
