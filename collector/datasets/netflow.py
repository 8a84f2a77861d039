"""Loads netflow's programs with one of their two hook sets and turns what they counted into deltas."""

from __future__ import annotations

import logging
import math
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from collector.config import Options
from collector.datasets.hooks import BACKENDS, Backend, attach_first, attached
from collector.datasets.netflow_calibration import find_receive_flags
from collector.datasets.netflow_hooks import HOOKS, SENDERS
from collector.flows import FlowDelta
from collector.local_addresses import LocalAddresses
from collector.seeds import Ends, Old, ephemeral, seeds
from kcompat import template
from kcompat.bpf import compile_cached
from kcompat.fields import Field
from kcompat.load import Loaded
from kcompat.maps import Map
from kcompat.offsets import Offsets
from kcompat.preemption import preempts_programs

log = logging.getLogger(__name__)

NAME = "netflow"
SOURCE = Path(__file__).with_name("netflow.bpf.c")

MERGED_PORT = 65535
"""The own port of clients whose short connections were merged."""
_UDP_IDLE_NS, _UDP_ONE_WAY_IDLE_NS = 120 * 10**9, 30 * 10**9
# Longer than any of our programs runs: after it none is left that saw the old generation.
_GRACE_S = 0.02
_WARNED_EVERY_S = 60.0
_BOUND = 1 << 16  # ports of datagram servers, in all namespaces
_LOSSES = ("tcp sockets", "flows", "closed sockets", "udp flows", "udp peers", "calls")
_UNKNOWN_LOCAL, _TOO_FAR = "udp addresses", "tcp bytes"
_SENDERS_TOLD, _ANY_TRANSLATED, _PREEMPTED = range(3)  # slots of the map `switches`
_DIRECTIONS = ("outgoing", "incoming", "outgoing")

_TCP = struct.Struct("<5Q16s16sHHII16s7IBB2x8xI8xI4xQ")
_FLOW_KEY = struct.Struct("<16s16sHHII16sI")
_FLOW = struct.Struct("<8Q")
_DESTINATION = struct.Struct("<16sII")
_UDP = struct.Struct("<4Q16s16sHHII16sI")
# What has been reported of a TCP socket so far: read, written, retransmits, established, closed; and at which flush.
_COUNTS = struct.Struct("<QQIBBH")
# What has been reported of datagrams, as the map has it in front: birth, read, written.
_UDP_COUNTS = struct.Struct("<QQQ")


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
        # By the keys of `dead`, which are the socket and its id: packed, for there may be 100,000.
        self._reported: dict[bytes, bytes] = {}
        self._reported_udp: dict[bytes, bytes] = {}
        self._locals = LocalAddresses()
        self.losses: dict[str, int] = dict.fromkeys((*_LOSSES, _UNKNOWN_LOCAL, _TOO_FAR), 0)
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
        self._seeds = seeds()
        self._bound, self._first_ephemeral = self._seeds.bound, ephemeral()
        table = self.loaded.maps["listeners"]
        for netns, port in self._seeds.listeners:
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
        flows = chain(self._merged(), self._tcp(), self._udp())
        self._forget_routes()
        return flows

    def _forget_routes(self) -> None:
        """Those of arriving packets lie there under threads that never send."""
        table = self.loaded.maps["routes"]
        found = table.items()
        if len(found) > table.spec.max_entries // 2:
            for thread, _ in found:
                table.delete(thread)

    def _merged(self) -> Iterator[FlowDelta]:
        """Connections that came and went within the generation that has just ended."""
        return self._of_merged(self.loaded.maps[f"flows{self._generation - 1 & 1}"].take())

    def _of_merged(self, entries: Iterable[tuple[bytes, bytes]]) -> Iterator[FlowDelta]:
        for key, value in entries:
            local, remote, local_port, remote_port, netns, pid, comm, direction = _FLOW_KEY.unpack(key)
            read, written, rtt, rtt_var, samples, retransmits, established, closed = _FLOW.unpack(value)
            way = _DIRECTIONS[direction]
            if not direction:
                way, pid = self._of_old((netns, local, local_port, remote, remote_port), pid, last=True)
            yield FlowDelta(local, local_port, remote, remote_port, "tcp", netns, pid, _text(comm), way, read, written,
                            retransmits, rtt, rtt_var, samples, established, closed)

    def _of_old(self, ends: Ends, pid: int, *, last: bool) -> tuple[str, int]:
        """The direction and the owner of a connection whose beginning was not seen."""
        old = self._seeds.old.pop(ends, None) if last else self._seeds.old.get(ends)
        if old is None:
            # Asked for one by one: the map has every port that was ever listened on, and few connections are so old.
            listens = self.loaded.maps["listeners"].get(struct.pack("<II", *ends[0:3:2]))
            old = Old("incoming" if listens else "outgoing", 0)
        return old.direction, pid or old.pid

    def _tcp(self) -> Iterator[FlowDelta]:
        """Sockets that were already there at an earlier flush, or still are: first the dead, then the living.

        In this order a socket that dies between the two is seen next time, whole.
        """
        return self._of_tcp(self.loaded.maps["dead"].take(), self.loaded.maps["socks"].read())

    def _of_tcp(self, dead: Iterable[tuple[bytes, bytes]],
                living: Iterable[tuple[bytes, bytes]]) -> Iterator[FlowDelta]:
        for name, value in dead:
            state = _TCP.unpack(value)
            self.losses[_TOO_FAR] += value[_WENT_TOO_FAR_AT] > 0
            yield self._tcp_delta(name, state, last=True)
        for key, value in living:
            state = _TCP.unpack(value)
            # Of one that only tries to connect nothing is known yet: not even its port.
            if state[18] == self._generation or not state[_FLAGS] & _WAS_ESTABLISHED:
                continue
            name = key + value[:8]
            if _is_whole(state) and (name in self._reported or self._is_still(key, state)):
                yield self._tcp_delta(name, state, last=False)
        self._forget_lost()

    def _forget_lost(self) -> None:
        """Sockets that no two flushes saw alive: of one that died beside the first, the second saw the end.

        The others did not fit into `dead`, or had nothing more to tell.
        """
        lately = {(self._generation - age & 0xFFFF).to_bytes(2, "little") for age in (0, 1)}
        for name in [name for name, told in self._reported.items() if told[-2:] not in lately]:
            del self._reported[name]

    def _is_still(self, key: bytes, state: tuple[Any, ...]) -> bool:
        """Whether a second look shows the same socket: the first may have been half at its predecessor in the map.

        If not, the next flush sees it, or it is merged, or dead, and then counts whole.
        """
        value = self.loaded.maps["socks"].get(key)
        if value is None:
            return False
        again = _TCP.unpack(value)
        return _is_whole(again) and [again[i] for i in _LASTING] == [state[i] for i in _LASTING]

    def _tcp_delta(self, name: bytes, state: tuple[Any, ...], *, last: bool) -> FlowDelta:
        (_, written_to, written_from, read_to, read_from, local, remote, local_port, remote_port, netns, pid, comm,
         retransmits, srtt, mdev, established, closed, _, _, direction, _, written_ahead, read_ahead, _) = state
        read, written = read_to - read_from + read_ahead, written_to - written_from + written_ahead
        before = self._reported.pop(name, None) if last else self._reported.get(name)
        read_before, written_before, retransmits_before, established_before, closed_before = (
            _COUNTS.unpack(before)[:-1] if before else _NOTHING)
        # A copy made amid a look may lack what the look before it had: that was told, and is not told again.
        read, written = max(read, read_before), max(written, written_before)
        if not last:
            self._reported[name] = _COUNTS.pack(read, written, retransmits, established, closed,
                                                self._generation & 0xFFFF)
        way = _DIRECTIONS[direction]
        if not direction:
            way, pid = self._of_old((netns, local, local_port, remote, remote_port), pid, last=last)
        return FlowDelta(local, local_port, remote, remote_port, "tcp", netns, pid, _text(comm), way,
                         read - read_before, written - written_before, retransmits - retransmits_before,
                         srtt >> 3, mdev >> 2 if srtt else 0, 1 if srtt else 0,
                         established - established_before, closed - closed_before)

    def _udp(self) -> Iterator[FlowDelta]:
        table = self.loaded.maps["datagrams"]
        return self._of_udp(table, table.read(), time.clock_gettime_ns(time.CLOCK_MONOTONIC))

    def _of_udp(self, table: Map, entries: Iterable[tuple[bytes, bytes]], now: int) -> Iterator[FlowDelta]:
        seen: dict[bytes, bytes] = {}
        gone: set[bytes] = set()
        self._locals.begin()
        for key, value in entries:
            (birth, read, written, last, local, remote, local_port, remote_port, netns, pid, comm,
             direction) = _UDP.unpack(value)
            before = self._reported_udp.get(key)
            same, read_before, written_before = _UDP_COUNTS.unpack(before) if before else (birth, 0, 0)
            if same != birth:
                read_before = written_before = 0
            idle = now - last
            if ((idle > _UDP_IDLE_NS or (idle > _UDP_ONE_WAY_IDLE_NS and not (read and written)))
                    and table.get(key) == value):
                table.delete(key)
                gone.add(key[:8])
            else:
                seen[key] = value[:_UDP_COUNTS.size]
            # A server speaks first when the flow in which it was spoken to is forgotten, or older than we are.
            if direction == 2 and (netns, local_port) in self._bound:
                direction = 1
            elif direction == 1 and local_port < self._first_ephemeral and len(self._bound) < _BOUND:
                self._bound.add((netns, local_port))
            if (read > read_before or written > written_before) and not local.strip(b"\0\xff"):
                chosen = self._locals.towards(netns, pid, remote)
                if not chosen:
                    self.losses[_UNKNOWN_LOCAL] += 1
                    continue
                local = chosen
            yield FlowDelta(local, local_port, remote, remote_port, "udp", netns, pid, _text(comm),
                            _DIRECTIONS[direction], read - read_before, written - written_before)
        self._reported_udp = seen
        if gone:
            for sock in gone.difference(key[:8] for key in seen):
                self.loaded.maps["partners"].delete(sock)

    def _count_losses(self) -> None:
        """Says what was lost once a minute at most: a full map stays full."""
        table = self.loaded.maps["losses"]
        for slot, reason in enumerate(_LOSSES):
            self.losses[reason] = int.from_bytes(table.get(slot.to_bytes(4, "little")) or b"", "little")
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


_NOTHING = (0, 0, 0, 0, 0)
_LASTING = (0, 2, 4, 18)  # of a struct tcp_state: id, written_base, read_base, generation
_FLAGS, _WAS_ESTABLISHED = 20, 1
_WENT_TOO_FAR_AT = struct.calcsize("<5Q16s16sHHII16s7I3B")


def _is_whole(state: tuple[Any, ...]) -> bool:
    """Whether a ``struct tcp_state`` was read between two writes: its seal is its id, and no count is below zero."""
    return bool(state[0] == state[-1] and state[1] >= state[2] and state[3] >= state[4])


@lru_cache(maxsize=4096)
def _text(comm: bytes) -> str:
    return comm.partition(b"\0")[0].decode(errors="replace")
