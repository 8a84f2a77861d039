"""Pointer fields, proved by what they point at: the socket's own inode, the namespace's own number."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from guessers.memory import ReadFault
from guessers.sampling import SockSample
from guessers.search import Found, is_pointer, lowest_pointer, pointers
from kcompat.fields import find

T = TypeVar("T")
Reader = Callable[[int, int], bytes]

_SOCKET_WINDOW = 1024  # struct socket_alloc: a struct socket and the inode of its file, under 900 bytes everywhere
_NET_WINDOW = 4096  # ns_common is near the head of struct net, but do not count on it
_PAIRS = 6


def search_socket(socks: Sequence[SockSample], read: Reader) -> Found:
    """``sk_socket``: it leads to an object that holds the sock's address and the inode number fstat(2) gives.

    Both stand at the same two offsets for every sample: struct socket.sk, and i_ino of the inode embedded behind it.
    """
    field = find("sk_socket")
    if not socks:
        return Found(field, (), {"samples": 0})
    chosen = _spread(socks, _PAIRS)
    end = min(s.sample.end for s in chosen)
    proved: dict[int, set[tuple[int, int]]] = {}
    tried = 0
    for at in pointers([s.sample.window for s in chosen], end, _lowest(chosen[0])):
        tried += 1
        if places := shared(_socket_proofs(s, at, read) for s in chosen):
            proved[at] = places
    rest = [s for s in socks if s not in chosen]
    held = _spread(rest, _PAIRS) if rest else []
    kept = tuple(at for at in proved if shared([proved[at], *(_socket_proofs(s, at, read) for s in held)]))
    return Found(field, kept, {
        "samples": len(chosen) + len(held), "held_out": len(held), "distinct_values": len(chosen),
        "candidates_by_sample": [tried, len(proved)], "refuted_by_held_out": sorted(set(proved) - set(kept)),
        "expected_false_positives": 0.0, "null_survivors": 0, "method": "pointer to our inode and back to our sock",
    })


def search_netns(socks: Sequence[SockSample], read: Reader) -> tuple[Found, Found]:
    """``skc_net`` and ``net.ns.inum``, together: one pointer per namespace, each leading to its inode number.

    The pointer is the same for all sockets of a namespace and differs between namespaces; behind it, at one offset
    for all, stands the number stat(2) gives for /proc/.../ns/net.
    """
    net, inum = find("skc_net"), find("net.ns.inum")
    by_namespace: dict[int, list[SockSample]] = {}
    for sock in socks:
        by_namespace.setdefault(sock.netns, []).append(sock)
    evidence: dict[str, Any] = {"samples": len(socks), "distinct_values": len(by_namespace)}
    if not socks:
        return Found(net, (), evidence), Found(inum, (), evidence)
    end = min(s.sample.end for s in socks)
    pairs: set[tuple[int, int]] = set()
    split = 0
    for at in pointers([s.sample.window for s in socks], end, _lowest(socks[0])):
        leads = {ns: {_word(s, at) for s in group} for ns, group in by_namespace.items()}
        if any(len(found) != 1 for found in leads.values()):
            continue
        if len(set().union(*leads.values())) != len(leads):
            continue
        split += 1
        pairs |= {(at, proof) for proof in shared(_inode_places(g[0], at, read) for g in by_namespace.values())}
    evidence |= {"held_out": 0, "candidates_by_sample": [split, len(pairs)],
                 "expected_false_positives": _chance(len(by_namespace), split), "null_survivors": 0,
                 "method": "pointer shared in a namespace, leading to its inode number"}
    return (Found(net, tuple(sorted({p for p, _ in pairs})), evidence),
            Found(inum, tuple(sorted({i for _, i in pairs})), evidence))


def leads_to_socket(sock: SockSample, at: int, read: Reader) -> bool:
    """Whether the pointer at `at` leads to this socket's struct socket."""
    return bool(_socket_proofs(sock, at, read))


def leads_to_netns(sock: SockSample, at: int, inum: int | None, read: Reader) -> bool:
    """Whether the pointer at `at` leads to something that holds this socket's namespace number, at `inum` if given."""
    places = _inode_places(sock, at, read)
    return bool(places) if inum is None else inum in places


def _chance(namespaces: int, split: int) -> float:
    """How many pairs of places would pass by accident, of `split` pointers and all words behind them.

    A word is this namespace's number by accident only: no two namespaces share one, and the numbers, from 0xEFFFFFF8
    up, are in the range of neither small numbers nor halves of pointers. 24 of the 32 bits are counted on.
    """
    return float(split * (_NET_WINDOW // 4) * 2.0 ** (-24 * namespaces))


def _socket_proofs(sock: SockSample, at: int, read: Reader) -> set[tuple[int, int]]:
    target = _behind(sock, at, _SOCKET_WINDOW, read)
    backs = places_of(target, sock.address.to_bytes(8, "little"), 8)
    inodes = places_of(target, sock.inode.to_bytes(8, "little"), 8)
    return {(b, i) for b in backs for i in inodes if b < i}


def _inode_places(sock: SockSample, at: int, read: Reader) -> set[int]:
    """Where the number of the socket's namespace stands behind the pointer at `at`."""
    return set(places_of(_behind(sock, at, _NET_WINDOW, read), sock.netns.to_bytes(4, "little"), 4))


def _behind(sock: SockSample, at: int, size: int, read: Reader) -> bytes:
    """What the pointer at `at` leads to; nothing when it is none or leads nowhere."""
    if not is_pointer(_word(sock, at), _lowest(sock)):
        return b""
    try:
        return read(_word(sock, at), size)
    except ReadFault:
        return b""


def _lowest(sock: SockSample) -> int:
    return lowest_pointer(sock.address, platform.machine())


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


def _word(sock: SockSample, at: int) -> int:
    return int.from_bytes(sock.sample.window[at:at + 8], "little")


def _spread(socks: Sequence[SockSample], count: int) -> list[SockSample]:
    """`count` of them, spread over all kinds."""
    return list(socks[::max(1, len(socks) // count)])[:count]
