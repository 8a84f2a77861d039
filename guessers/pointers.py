"""Pointer fields, proved by what they point at: the socket's own inode, the namespace's own number."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from guessers.memory import ReadFault
from guessers.search import MACHINE, Found, Sample, by_chance, exchanged, is_object, lowest_pointer, pointers
from guessers.tape import Reader
from kcompat.fields import find

G = TypeVar("G", bound=Hashable)
T = TypeVar("T")

_SOCKET_WINDOW = 1024  # struct socket_alloc: a struct socket and the inode of its file, under 900 bytes everywhere
_NET_WINDOW = 4096  # ns_common is near the head of struct net, but do not count on it
_PAIRS = 6


@dataclass(frozen=True, slots=True)
class SockSample:
    """A socket's window with what else tells about the pointers in it."""

    sample: Sample
    address: int
    netns: int
    inode: int
    """Inode number of the socket's file: it stands in the struct socket_alloc that sk_socket points into."""


def search_socket(socks: Sequence[SockSample], read: Reader, machine: str = MACHINE) -> Found:
    """``sk_socket``: it leads to an object that holds the sock's address and the inode number fstat(2) gives.

    Both stand at the same two offsets for every sample: struct socket.sk, and i_ino of the inode embedded behind it.
    """
    field = find("sk_socket")
    if not socks:
        return Found(field, (), {"samples": 0})
    chosen = _spread(socks, _PAIRS)
    others = exchanged(chosen)
    lowest = lowest_pointer(chosen[0].address, machine)
    end = min(s.sample.end for s in chosen)
    proved: dict[int, set[tuple[int, int]]] = {}
    tried = passed = null = 0
    for at in pointers([s.sample.window for s in chosen], end, lowest):
        tried += 1
        passed += bool(_socket_proofs(chosen[0], at, read, lowest))
        null += bool(shared(_socket_proofs(s, at, read, lowest, of=o) for s, o in zip(chosen, others, strict=True)))
        if places := shared(_socket_proofs(s, at, read, lowest) for s in chosen):
            proved[at] = places
    rest = [s for s in socks if s not in chosen]
    held = _spread(rest, _PAIRS) if rest else []
    kept = tuple(at for at in proved if shared([proved[at], *(_socket_proofs(s, at, read, lowest) for s in held)]))
    return Found(field, kept, {
        "samples": len(chosen) + len(held), "held_out": len(held), "distinct_values": len(chosen),
        "candidates_by_sample": [tried, len(proved)], "refuted_by_held_out": sorted(set(proved) - set(kept)),
        "expected_false_positives": by_chance(tried, passed, len(chosen) + len(held), _SOCKET_WINDOW // 8),
        "null_survivors": null if len(chosen) > 1 else -1, "method": "pointer to our inode and back to our sock",
        "chance": f"{passed} of {tried} pointers of one sock pass; an address of its own stands behind each",
    })


def search_netns(socks: Sequence[SockSample], read: Reader, machine: str = MACHINE) -> tuple[Found, Found]:
    """``skc_net`` and ``net.ns.inum``, together: one pointer per namespace, each leading to its inode number.

    The pointer is the same for all sockets of a namespace and differs between namespaces; behind it, at one offset
    for all, stands the number stat(2) gives for /proc/.../ns/net.
    """
    net, inum = find("skc_net"), find("net.ns.inum")
    namespaces = [s.netns for s in socks]
    evidence: dict[str, Any] = {"samples": len(socks), "distinct_values": len(set(namespaces))}
    if not socks:
        return Found(net, (), evidence), Found(inum, (), evidence)
    lowest = lowest_pointer(socks[0].address, machine)
    end = min(s.sample.end for s in socks)
    numbers = list(dict.fromkeys(namespaces))
    split, pairs, null = 0, set(), set()
    for at in pointers([s.sample.window for s in socks], end, lowest):
        if leads := parted([s.sample.window for s in socks], namespaces, at):
            split += 1
            pairs |= {(at, proof) for proof in shared(_inode_places(leads[n], n, read, lowest) for n in numbers)}
            null |= shared(_inode_places(leads[n], other, read, lowest)
                           for n, other in zip(numbers, exchanged(numbers), strict=True))
    evidence |= {"held_out": 0, "candidates_by_sample": [split, len(pairs)],
                 "expected_false_positives": _chance(len(numbers), split),
                 "null_survivors": len(null) if len(numbers) > 1 else -1,
                 "method": "pointer shared in a namespace, leading to its inode number",
                 "chance": f"24 random bits for each namespace, behind {split} pointers"}
    return (Found(net, tuple(sorted({p for p, _ in pairs})), evidence),
            Found(inum, tuple(sorted({i for _, i in pairs})), evidence))


def parted(windows: Sequence[bytes], groups: Sequence[G], at: int) -> dict[G, int] | None:
    """The word at `at` of each group, if it is the same throughout the group and another one in every other."""
    leads: dict[G, int] = {}
    for window, group in zip(windows, groups, strict=True):
        if leads.setdefault(group, word(window, at)) != word(window, at):
            return None
    return leads if len(set(leads.values())) == len(leads) else None


def leads_to_socket(sock: SockSample, at: int, read: Reader) -> bool:
    """Whether the pointer at `at` leads to this socket's struct socket."""
    return bool(_socket_proofs(sock, at, read, lowest_pointer(sock.address)))


def leads_to_netns(sock: SockSample, at: int, inum: int | None, read: Reader) -> bool:
    """Whether the pointer at `at` leads to something that holds this socket's namespace number, at `inum` if given."""
    places = _inode_places(word(sock.sample.window, at), sock.netns, read, lowest_pointer(sock.address))
    return bool(places) if inum is None else inum in places


def _chance(namespaces: int, split: int) -> float:
    """How many pairs of places would pass by accident, of `split` pointers and all words behind them.

    A word is this namespace's number by accident only: no two namespaces share one, and the numbers, from 0xEFFFFFF8
    up, are in the range of neither small numbers nor halves of pointers. 24 of the 32 bits are counted on.
    """
    return float(split * (_NET_WINDOW // 4) * 2.0 ** (-24 * namespaces))


def _socket_proofs(sock: SockSample, at: int, read: Reader, lowest: int,
                   of: SockSample | None = None) -> set[tuple[int, int]]:
    """Where, behind the pointer at `at`, the sock and the inode stand: its own, or those of another one."""
    of = of or sock
    target = behind(word(sock.sample.window, at), _SOCKET_WINDOW, read, lowest)
    backs = places_of(target, of.address.to_bytes(8, "little"), 8)
    inodes = places_of(target, of.inode.to_bytes(8, "little"), 8)
    return {(b, i) for b in backs for i in inodes if b < i}


def _inode_places(address: int, number: int, read: Reader, lowest: int) -> set[int]:
    """Where the number of a namespace stands behind an address."""
    return set(places_of(behind(address, _NET_WINDOW, read, lowest), number.to_bytes(4, "little"), 4))


def behind(address: int, size: int, read: Reader, lowest: int) -> bytes:
    """What stands there; nothing when it is no address of an object, or cannot be read."""
    if not is_object(address, lowest):
        return b""
    try:
        return read(address, size)
    except ReadFault:
        return b""


def places_of(window: bytes, code: bytes, step: int) -> list[int]:
    found, at = [], window.find(code)
    while at >= 0:
        if at % step == 0:
            found.append(at)
        at = window.find(code, at + 1)
    return found


def shared(sets: Iterable[set[T]]) -> set[T]:
    """What is in all of them; stops at the first that leaves nothing, so later ones are not even made."""
    common: set[T] | None = None
    for one in sets:
        common = set(one) if common is None else common & one
        if not common:
            return set()
    return common or set()


def word(window: bytes, at: int) -> int:
    """The eight bytes at `at` as a number, such as a pointer."""
    return int.from_bytes(window[at:at + 8], "little")


def _spread(socks: Sequence[SockSample], count: int) -> list[SockSample]:
    """`count` of them, spread over all kinds."""
    return list(socks[::max(1, len(socks) // count)])[:count]
