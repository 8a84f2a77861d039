"""Checks remembered offsets against a few known connections: memory is trusted only after that."""

from __future__ import annotations

import itertools
import logging
import random
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

from guessers.absence import has_ipv6
from guessers.conclusions import SOCKET, Findings, conclude, follow_now
from guessers.descriptors import collect_files
from guessers.experiments import collect_tcp, collect_udp, netns_inode
from guessers.files import FILE_FAMILY
from guessers.haul import Haul
from guessers.hooks import BACKENDS, Backend
from guessers.memory import KernelMemory, compiled
from guessers.messages import MESSAGE_FAMILY
from guessers.namespace import Netns, in_own_thread
from guessers.packets import Post
from guessers.pointers import leads_to_netns, leads_to_socket
from guessers.sampling import Sampler
from guessers.search import stands
from guessers.sending import collect_messages
from guessers.skbuff import leads_to_bytes, samples
from guessers.stimulus import Addresses, Stimulus
from guessers.verdicts import peaceful
from kcompat.fields import Field, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, Offsets, State
from kcompat.version import running_version_code

log = logging.getLogger(__name__)

_SK_SOCKET, _HEAD = find("sk_socket"), find("sk_buff.head")
_PACKETS = 1  # datagrams, and TCP segments, a family
_CONNECTIONS = 3  # a family: enough for neighbours with the same value to part ways


def verify(kernel: Kernel, offsets: Sequence[Offset], backends: tuple[Backend, ...] = BACKENDS) -> Mapping[Field, bool]:
    """Which fields the running kernel bears out and which it refutes: what we know does not stand there.

    A field of which nothing was seen is not in the answer.

    Raises Missing or Unsupported when nothing can be observed, KcompatError when no sample could be had.
    """
    program = compiled(running_version_code(kernel.release))
    return in_own_thread(lambda nonce: _observe(KernelMemory(program, backends), nonce, Offsets(offsets)))


def _observe(memory: KernelMemory, nonce: bytes, offsets: Offsets) -> dict[Field, bool]:
    rng = random.Random()
    with memory:
        memory.adopt(nonce)
        try:
            namespace: Netns | None = Netns.fresh()
        except OSError:
            namespace = None
        haul = Haul()
        ipv6 = has_ipv6()
        # With a coin that falls either way for every kind of socket: small values must differ to refute anything.
        stimulus = Stimulus(rng, Addresses(rng, private=namespace is not None, ipv6=ipv6),
                            itertools.cycle((True, False, False)).__next__)
        try:
            sampler = Sampler(memory, stimulus, netns_inode(), haul)
            families = (socket.AF_INET, socket.AF_INET6) if ipv6 else (socket.AF_INET,)
            for family in families:
                collect_tcp(sampler, rng, family, _CONNECTIONS)
                if sampler.direct:  # what connections have twice (daddr, saddr) is there once in these
                    collect_udp(sampler, family, turns=1)
            if memory.has("sk_buff") and any(field.base == "sk_buff" for field in offsets):
                Post(sampler, rng, families if stimulus.addresses.native_ipv6 else families[:1]).send(_PACKETS, 0)
            _follow(sampler, rng, offsets)
            findings = conclude(haul)
            head = offsets.get(_HEAD)
            findings.samples["sk_buff"] = samples(haul.packets, head.offset if head else None)
            held = {o.field: _holds(o, offsets, haul, findings, memory) for o in offsets.known().values()}
            # Of two left at one place, or in the wrong order, neither is believed, whatever stands there.
            places = {o.field: o.offset for o in offsets.known().values()
                      if o.offset is not None and held[o.field] is not False}
            held |= dict.fromkeys(places.keys() - peaceful(places).keys(), False)
            return {field: true for field, true in held.items() if true is not None}
        finally:
            stimulus.close()
            if namespace:
                namespace.close()


def _follow(sampler: Sampler, rng: random.Random, offsets: Offsets) -> None:
    """The ways to files and messages, found anew as a guess does, but only once."""
    haul, told = sampler.haul, offsets.known().get(_SK_SOCKET)
    bases = {field.base for field in offsets.known()}
    if bases & {"task_struct", "files_struct", "fdtable", "file", "socket"} and haul.socks:
        at = told.offset if told else None
        if at is not None and all(leads_to_socket(s, at, sampler.memory.read) for s in haul.socks):
            places: Sequence[int] = (at,)
        else:
            places = follow_now(haul, SOCKET, sampler.memory.read)[0].candidates
        with suppress(OSError):
            collect_files(sampler, rng, (socket.AF_INET,), places, tables=1, growths=1)
    if "msghdr" in bases:
        with suppress(OSError):
            collect_messages(sampler, rng, turns=1)


def _holds(offset: Offset, offsets: Offsets, haul: Haul, findings: Findings, memory: KernelMemory) -> bool | None:
    """Whether all samples that know the field agree; None when there is no such sample."""
    field, at = offset.field, offset.offset
    assert at is not None
    if field.base == "sock" and not haul.socks:
        return None
    if field in FILE_FAMILY | MESSAGE_FAMILY:
        found = findings.reached.get(field)
        return at in found.candidates if found and found.evidence.get("samples") else None
    if field == _SK_SOCKET:
        return all(leads_to_socket(s, at, memory.read) for s in haul.socks)
    if field == find("skc_net"):
        return all(leads_to_netns(s, at, None, memory.read) for s in haul.socks[:2])
    if field == find("net.ns.inum"):
        net = offsets.get(find("skc_net"))
        if net is None or net.state is not State.KNOWN or net.offset is None:
            return None
        return all(leads_to_netns(s, net.offset, at, memory.read) for s in haul.socks[:2])
    if field == _HEAD:
        return leads_to_bytes(haul.packets, at)
    telling = [s for s in findings.samples.get(field.base, ()) if field in s.values]
    if not telling:
        log.debug("%s: nothing here can show it", field)
        return None
    return all(stands(s, s.values[field], at) for s in telling)

