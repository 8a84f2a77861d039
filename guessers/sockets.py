"""Sockets and their files, as descriptors lead to them: what stands in both, and which pointers join them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guessers.pointers import parted, places_of, shared, word
from guessers.search import Found, Sample, by_chance, chance_of_pattern, exchanged, pointers
from guessers.tape import Reader
from kcompat.fields import find

F_INODE, OPS = find("file.f_inode"), find("socket.ops")
FILE_SIZE = 512  # struct file is under 300 bytes
_SOCKET_SIZE = 1024  # struct socket_alloc


@dataclass(frozen=True, slots=True)
class OurSocket:
    """A socket of ours and its file, as the way from its descriptor leads to them."""

    kind: tuple[int, int]
    inode: int
    sock: int | None
    socket: int
    file: int


def is_his(one: OurSocket, read: Reader) -> bool:
    """Whether the ``struct socket`` a descriptor led to has the inode number that fstat(2) gives for it."""
    return bool(places_of(read(one.socket, _SOCKET_SIZE), one.inode.to_bytes(8, "little"), 8))


def samples_of(ours: Sequence[OurSocket], read: Reader,
               file_size: int = FILE_SIZE) -> tuple[list[Sample], list[Sample]]:
    """The struct socket and the struct file of each, with the pointers and the type that stand in them."""
    sockets: list[Sample] = []
    files: list[Sample] = []
    for one in ours:
        values = {find("socket.type"): (one.kind[1].to_bytes(2, "little"),),
                  find("socket.file"): (one.file.to_bytes(8, "little"),)}
        if one.sock is not None:
            values[find("socket.sk")] = (one.sock.to_bytes(8, "little"),)
        sockets.append(Sample(read(one.socket, _SOCKET_SIZE), values))
        back = {find("file.private_data"): (one.socket.to_bytes(8, "little"),)}
        files.append(Sample(read(one.file, file_size), back))
    return sockets, files


def cut(sample: Sample, end: int) -> Sample:
    """The same without what lies behind `end`."""
    return Sample(sample.window, sample.values, end, sample.label)


def search_inode(ours: Sequence[OurSocket], sockets: Sequence[Sample], files: Sequence[Sample]) -> tuple[Found, int]:
    """``f_inode``, and how far behind its socket the inode begins.

    A socket and its inode are one object: the pointer leads the same way behind every socket, and not past the
    inode's number. Pointers into the inode lead further than the one to it: an inode begins where it begins.
    """
    numbers = shared(set(places_of(s.window, o.inode.to_bytes(8, "little"), 8)) for o, s in zip(ours, sockets,
                                                                                          strict=True))
    if not numbers:
        return Found(F_INODE, (), NOTHING), _SOCKET_SIZE
    begins = [o.socket for o in ours]
    places = range(0, min(f.end for f in files) - 7, 8)

    def distance(at: int, sockets: Sequence[int]) -> int:
        """How far behind all of these sockets the pointer at `at` leads; 0 if not equally far, or past the number."""
        found = {word(f.window, at) - socket for f, socket in zip(files, sockets, strict=False)}
        return one if len(found) == 1 and 0 < (one := found.pop()) <= max(numbers) else 0

    leads: dict[int, list[int]] = {}
    for at in places:
        if far := distance(at, begins):
            leads.setdefault(far, []).append(at)
    # One socket sets the distance, every other one can refute it: so does the second, and so the chance is measured.
    passed = sum(bool(distance(at, begins[:2])) for at in places)
    null = sum(bool(distance(at, exchanged(begins))) for at in places) if len(ours) > 1 else -1
    nearest = min(leads, default=_SOCKET_SIZE)
    return Found(F_INODE, tuple(leads.get(nearest, ())), evidence_of(
        len(ours), [len(places), len(leads.get(nearest, ()))], by_chance(len(places), passed, len(ours) - 1, 1), null,
        "leads behind our socket, where its inode is",
        f"{passed} of {len(places)} words lead equally far behind two of our sockets")), nearest


def search_ops(ours: Sequence[OurSocket], sockets: Sequence[Sample]) -> Found:
    """``ops``: the same pointer for all sockets of a family and type, another one for all others."""
    kinds = [one.kind for one in ours]
    if len(set(kinds)) < 3:
        return Found(OPS, (), NOTHING)
    windows = [s.window for s in sockets]
    lowest = min(one.socket for one in ours) >> 47 << 47
    places = list(pointers(windows, min(map(len, windows)), lowest))
    found = tuple(at for at in places if parted(windows, kinds, at))
    null = sum(bool(parted(windows, exchanged(kinds), at)) for at in places)
    return Found(OPS, found, evidence_of(
        len(ours), [len(places), len(found)], len(places) * chance_of_pattern(kinds), null,
        "one pointer for each family and type",
        f"the orders that {len(ours)} sockets of {len(set(kinds))} kinds, shuffled, can come in")
        | {"distinct_values": len(set(kinds))})


NOTHING: dict[str, Any] = {"samples": 0}


def evidence_of(samples: int, trail: list[int], expected: float, null: int, method: str, chance: str) -> dict[str, Any]:
    return {"samples": samples, "held_out": 0, "distinct_values": samples, "candidates_by_sample": trail,
            "refuted_by_held_out": [], "expected_false_positives": expected, "null_survivors": null, "method": method,
            "chance": chance}
