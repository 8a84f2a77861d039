"""Loads netflow's programs with one of their two hook sets and turns what they counted into deltas."""

from __future__ import annotations

import logging
import math
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from collector.config import Options
from collector.datasets.hooks import BACKENDS, Backend, attach_first, attached
from collector.datasets.netflow_calibration import find_receive_flags
from collector.datasets.netflow_connections import TOO_FAR, Connections
from collector.datasets.netflow_datagrams import UNKNOWN_LOCAL, Datagrams
from collector.datasets.netflow_hooks import DATAGRAMS, HOOKS, SENDERS
from collector.flows import FlowDelta
from collector.seeds import seeds
from collector.threads import forget_ended
from kcompat import template
from kcompat.bpf import compile_cached
from kcompat.fields import Field
from kcompat.load import Loaded
from kcompat.offsets import Offsets
from kcompat.preemption import preempts_programs

log = logging.getLogger(__name__)

NAME = "netflow"
SOURCE = Path(__file__).with_name("netflow.bpf.c")

MERGED_PORT = 65535
"""The own port of clients whose short connections were merged."""
# Longer than any of our programs runs without being preempted: after it none is left that saw the old generation. From
# 7.0 on one may be, for longer: a flow that it then inserts is told two flushes later; one that it had found is taken
# by then, and what it adds there is lost, or another's.
_GRACE_S = 0.02
_WARNED_EVERY_S = 60.0
_LOSSES = ("tcp sockets", "flows", "closed sockets", "udp flows", "udp peers", "calls")
_EVENTS = "events"
_BY_THREAD = ("calls", "senders", "pendings")
_SENDERS_TOLD, _ANY_TRANSLATED, _PREEMPTED = range(3)  # slots of the map `switches`
_DESTINATION = struct.Struct("<16sII")


def wanted() -> tuple[Field, ...]:
    """Every field the programs can use, the indispensable ones first."""
    hard, soft = template.needed(template.read_source(SOURCE))
    return hard + soft


def render(offsets: Offsets, options: Options) -> str:
    """The C as it will be compiled. Raises UnknownField when an indispensable offset is not known."""
    sizes = {"MAX_SOCKS": options.max_sockets, "MAX_FLOWS": options.max_flows, "EPHEMERAL_PORT": options.ephemeral_port,
             "MERGED_PORT": MERGED_PORT}
    return template.render(NAME, template.read_source(SOURCE), offsets, sizes)


class Netflow:
    """The running dataset. `flush` gives what happened since the last one. Use as a context manager."""

    def __init__(self, offsets: Offsets, options: Options, version_code: int,
                 backends: Sequence[Backend] = BACKENDS) -> None:
        compiled, _ = compile_cached(render(offsets, options))
        self.loaded = Loaded(compiled, version_code)
        self._generation = 0
        self.losses: dict[str, int] = dict.fromkeys((*_LOSSES, _EVENTS, UNKNOWN_LOCAL, TOO_FAR), 0)
        self._warned_s, self._warned_of = -math.inf, Counter[str]()
        try:
            self.backend, self.hooks = self._attach(backends)
            self._seed()
        except BaseException:
            self.close()
            raise

    def _attach(self, backends: Sequence[Backend]) -> tuple[Backend, tuple[str, ...]]:
        if preempts_programs():
            self._switch_on(_PREEMPTED)
        backend = attach_first(NAME, self.loaded, HOOKS, backends)
        if attached(self.loaded, SENDERS):
            self._switch_on(_SENDERS_TOLD)
        if backend == "kprobe":
            find_receive_flags(self.loaded)
        return backend, tuple(a.name for a in self.loaded.attachments)

    def _seed(self) -> None:
        """After attaching: who begins to listen from now on is seen by the programs."""
        found = seeds()
        self._connections = Connections(self.loaded, found.old, self.losses)
        self._datagrams = Datagrams(self.loaded, found.bound, self.losses)
        table = self.loaded.maps["listeners"]
        for netns, port in found.listeners:
            try:
                table.set(struct.pack("<II", netns, port), struct.pack("<I", 1))
            except OSError as error:
                log.warning("which side opened an old connection stays unknown of some: %s", error.strerror)
                break

    def _switch_on(self, which: int) -> None:
        self.loaded.maps["switches"].set(struct.pack("<I", which), struct.pack("<I", 1))

    def mark_translated(self, netns: int, remote: bytes, port: int) -> None:
        """From now on short connections to there are told of with their own ports; netns 0 is any namespace."""
        with suppress(OSError):  # full: then they are told apart only where all go the same way
            self.loaded.maps["translated"].set(_DESTINATION.pack(remote, port, netns), struct.pack("<I", 1))
            self._switch_on(_ANY_TRANSLATED)

    def flush(self) -> list[FlowDelta]:
        """Everything counted since the last flush, once."""
        return [*self.stream()]

    def stream(self) -> Iterator[FlowDelta]:
        """As `flush`; the maps are read when this returns. It must be gone through to its end before the next."""
        self._generation += 1
        self.loaded.maps["generation"].set(bytes(4), struct.pack("<I", self._generation))
        time.sleep(_GRACE_S)
        self._count_losses()
        flows = chain(self._connections.merged(self._generation), self._connections.read(self._generation),
                      self._datagrams.read())
        self._forget()
        return flows

    def _forget(self) -> None:
        """What threads left behind. Routes of arriving packets lie under those that never send, and that go on.

        One of the others a flush: while a map is read, kprobes of that processor rest.
        """
        forget_ended(self.loaded.maps[_BY_THREAD[self._generation % len(_BY_THREAD)]])
        table = self.loaded.maps["routes"]
        found = table.items()
        if len(found) > table.spec.max_entries // 2:
            for thread, _ in found:
                table.delete(thread)

    def _count_losses(self) -> None:
        """Says what was lost once a minute at most: a full map stays full."""
        table = self.loaded.maps["losses"]
        for slot, reason in enumerate(_LOSSES):
            self.losses[reason] = int.from_bytes(table.get(slot.to_bytes(4, "little")) or b"", "little")
        self.losses[_EVENTS] = sum(self.loaded.left_out(name) or 0 for name in DATAGRAMS)
        lost = Counter(self.losses) - self._warned_of
        if lost and time.monotonic() >= self._warned_s + _WARNED_EVERY_S:
            log.warning("netflow lost %s: a kernel map was full, or what was sent or received not all seen",
                        ", ".join(f"{count} {reason}" for reason, count in lost.items()))
            self._warned_s, self._warned_of = time.monotonic(), Counter(self.losses)

    def close(self) -> None:
        self.loaded.close()

    def __enter__(self) -> Netflow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
