"""One guess of the running kernel, from nothing to offsets with evidence."""

from __future__ import annotations

import itertools
import logging
import random
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from guessers.hooks import BACKENDS, Backend
from guessers.memory import KernelMemory, compiled
from guessers.namespace import NETNS, Netns, in_own_thread
from guessers.pointers import search_netns, search_socket
from guessers.sampling import Haul, Sampler, collect_bare, collect_raw, collect_tcp, collect_udp
from guessers.search import Sample, search
from guessers.stimulus import Addresses, Stimulus
from guessers.verdicts import SOURCE, judge
from kcompat.fields import CATALOGUE, Field, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, Offsets, State
from kcompat.version import running_version_code

log = logging.getLogger(__name__)

# Pointers, proved by following them instead of by their value.
FOLLOWED = frozenset({find("sk_socket"), find("skc_net"), find("net.ns.inum")})
_CONNECTIONS = 6  # a family and round; both ends are sampled
_ROUNDS = 4  # ambiguity is answered by more experiments, up to so many rounds


@dataclass(frozen=True, slots=True)
class Stats:
    """What the guess cost. Seconds; `compile_s` is 0 when the compiled object was at hand."""

    connections: int
    samples: int
    rounds: int
    compile_s: float
    sampling_s: float
    solving_s: float
    total_s: float

    def as_json(self) -> dict[str, float | int]:
        return {name: round(getattr(self, name), 6) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Guess:
    offsets: Offsets
    stats: Stats
    hooks: dict[str, tuple[str, ...]]
    """What was hooked, by object: the evidence's first line."""


def guess(wanted: Sequence[Field] = CATALOGUE, *, backends: tuple[Backend, ...] = BACKENDS, use_cache: bool = True,
          seed: int | None = None) -> Guess:
    """Finds the offsets of `wanted` on the running kernel by experiment.

    Raises Missing or Unsupported when no experiment is possible at all: not root, no bcc and nothing compiled,
    no BPF, lockdown. What could not be found is in the result, with the reason.
    """
    started = time.monotonic()
    program = compiled(running_version_code(Kernel.running().release), use_cache=use_cache)
    compile_s = 0.0 if program.cached else time.monotonic() - started
    return in_own_thread(lambda nonce: _experiment(KernelMemory(program, backends), nonce, wanted, compile_s, started,
                                                   random.Random(seed)))


def _experiment(memory: KernelMemory, nonce: bytes, wanted: Sequence[Field], compile_s: float, started: float,
                rng: random.Random) -> Guess:
    sampling_s = solving_s = 0.0
    with memory:
        memory.adopt(nonce)
        haul = Haul()
        for number in itertools.count(1):
            clock = time.monotonic()
            collect(memory, rng, haul, whole=number == 1)
            sampling_s += time.monotonic() - clock
            clock = time.monotonic()
            offsets = solve(wanted, haul, memory)
            solving_s += time.monotonic() - clock
            if number == _ROUNDS or not _worth_another_round(offsets):
                break
        hooks = {h.program: symbols for h, symbols in memory.attached.items()}
        silent = [h.program for h, (_, ours) in memory.hits().items() if not ours and h.object != "trigger"]
    if silent:
        log.debug("attached but never fired for us: %s", ", ".join(silent))
    stats = Stats(haul.connections, haul.samples, number, compile_s, sampling_s, solving_s, time.monotonic() - started)
    return Guess(Offsets(offsets), stats, hooks)


def collect(memory: KernelMemory, rng: random.Random, haul: Haul, *, whole: bool) -> None:
    """One round of experiments into `haul`, in private namespaces where that is allowed.

    A `whole` round also visits a second namespace and our own, and follows pointers: that must happen here, while
    the sockets and namespaces they lead to are alive. The thread ends in the namespace it came from.
    """
    home = Netns() if NETNS.exists() else None
    opened = [home] if home else []
    try:
        _collect_here(memory, rng, haul, _fresh(opened), follow=whole)
        if whole and home:
            if second := _fresh(opened):
                _collect_bare(memory, rng, haul, second)
            home.enter()
            _collect_bare(memory, rng, haul, home)
            for found in search_netns(haul.socks, memory.read):
                haul.reached[found.field] = found
    finally:
        if home:
            home.enter()
        for namespace in opened:
            namespace.close()


def _fresh(opened: list[Netns]) -> Netns | None:
    """A new namespace, entered; None where we may not have one and stay where we are."""
    with suppress(OSError):
        opened.append(Netns.fresh())
        return opened[-1]
    return None


def _collect_here(memory: KernelMemory, rng: random.Random, haul: Haul, private: Netns | None, *,
                  follow: bool) -> None:
    ipv6 = has_ipv6()
    stimulus = Stimulus(rng, Addresses(rng, private=private is not None, ipv6=ipv6))
    sampler = Sampler(memory, stimulus, netns_inode(), haul)
    try:
        for family in (socket.AF_INET, socket.AF_INET6) if ipv6 else (socket.AF_INET,):
            collect_tcp(sampler, rng, family, _CONNECTIONS)
            if follow:
                collect_udp(sampler, family)
            collect_raw(sampler, family)
        if follow:
            haul.reached[find("sk_socket")] = search_socket(haul.socks, memory.read)
    finally:
        haul.connections += stimulus.connections
        stimulus.close()


def _collect_bare(memory: KernelMemory, rng: random.Random, haul: Haul, namespace: Netns) -> None:
    stimulus = Stimulus(rng, Addresses(rng, private=False, ipv6=False))
    try:
        collect_bare(Sampler(memory, stimulus, namespace.inode, haul))
    finally:
        stimulus.close()


def netns_inode() -> int:
    """The number of the namespace this thread is in; 0 on a kernel without namespaces."""
    return NETNS.stat().st_ino if NETNS.exists() else 0


def solve(wanted: Sequence[Field], haul: Haul, memory: KernelMemory) -> list[Offset]:
    """Candidates for every wanted field, then verdicts. The haul may hold several rounds."""
    samples: dict[str, list[Sample]] = {"sock": [s.sample for s in haul.socks], **haul.flows}
    found = [haul.reached[field] if field in FOLLOWED else search(field, samples.get(field.base, ()))
             for field in wanted if field not in FOLLOWED or field in haul.reached]
    verdicts = judge(found, samples, {f: _why_no_sample(f, haul, memory) for f in wanted})
    return [verdicts.get(field) or _without_search(field) for field in wanted]


def _without_search(field: Field) -> Offset:
    """Only a kernel without network namespaces leaves these two unsearched: then there is nothing to find."""
    if field.member == "skc_net":
        return Offset.absent(field, SOURCE, "the kernel has no network namespaces: /proc/self/ns/net is not there")
    return Offset.unknown(field, SOURCE, "no network namespaces, so nothing leads to a struct net")


def _worth_another_round(offsets: Iterable[Offset]) -> bool:
    return any((o.state is State.UNKNOWN and o.candidates) or "thin" in (o.reason or "") for o in offsets)


def _why_no_sample(field: Field, haul: Haul, memory: KernelMemory) -> str:
    wanted = "sk" if field.base == "sock" else field.base
    if wanted in memory.missing:
        return f"no hook for it here: {memory.missing[wanted]}"
    if not has_ipv6() and (field.struct == "flowi6" or "_v6_" in field.member):
        return "this kernel opens no IPv6 socket, so there is nothing to look at"
    told = "; ".join(f"{why} ({count} times)" for why, count in haul.missed.items())
    return told or "no socket told its value"


def has_ipv6() -> bool:
    """Whether an IPv6 socket can be opened: more is not needed, addresses are our own affair."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True
