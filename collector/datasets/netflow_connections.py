"""TCP of netflow: what the kernel's maps say of connections, made into what is new since the last flush."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

from collector.datasets.wording import WAYS, text
from collector.flows import FlowDelta
from collector.seeds import Ends, Old
from kcompat.load import Loaded

TOO_FAR = "tcp bytes"
"""What is lost of a connection that moved more, unseen, than a number of the kernel's can tell."""
STATE = struct.Struct("<5Q16s16sHHII16s7IBB2x8xI8xI4xQ")
"""``struct tcp_state``."""
_FLOW_KEY = struct.Struct("<16s16sHHII16sI")
_FLOW = struct.Struct("<8Q")
# What has been reported of a socket so far: read, written, retransmits, established, closed; and at which flush.
_COUNTS = struct.Struct("<QQIBBH")
_NOTHING = (0, 0, 0, 0, 0)
_LASTING = (0, 2, 4, 18)  # of a struct tcp_state: id, written_base, read_base, generation
_FLAGS, _WAS_ESTABLISHED = 20, 1
_WENT_TOO_FAR_AT = struct.calcsize("<5Q16s16sHHII16s7I3B")


class Connections:
    """`old` are those older than the collector. What is lost is counted in `losses`."""

    def __init__(self, loaded: Loaded, old: dict[Ends, Old], losses: dict[str, int]) -> None:
        self._maps, self._old, self._losses = loaded.maps, old, losses
        # By the keys of `dead`, which are the socket and its id: packed, for there may be 100,000.
        self._reported: dict[bytes, bytes] = {}

    def merged(self, generation: int) -> Iterator[FlowDelta]:
        """Connections that came and went within the generation before this one; the map is read when this returns."""
        return self._of_merged(self._maps[f"flows{generation - 1 & 1}"].take())

    def _of_merged(self, entries: Iterable[tuple[bytes, bytes]]) -> Iterator[FlowDelta]:
        for key, value in entries:
            local, remote, local_port, remote_port, netns, pid, comm, direction = _FLOW_KEY.unpack(key)
            read, written, rtt, rtt_var, samples, retransmits, established, closed = _FLOW.unpack(value)
            way = WAYS[direction]
            if not direction:
                way, pid = self._of_old((netns, local, local_port, remote, remote_port), pid, last=True)
            yield FlowDelta(local, local_port, remote, remote_port, "tcp", netns, pid, text(comm), way, read, written,
                            retransmits, rtt, rtt_var, samples, established, closed)

    def _of_old(self, ends: Ends, pid: int, *, last: bool) -> tuple[str, int]:
        """The direction and the owner of a connection whose beginning was not seen."""
        old = self._old.pop(ends, None) if last else self._old.get(ends)
        if old is None:
            # Asked for one by one: the map has every port that was ever listened on, and few connections are so old.
            listens = self._maps["listeners"].get(struct.pack("<II", *ends[0:3:2]))
            old = Old("incoming" if listens else "outgoing", 0)
        return old.direction, pid or old.pid

    def read(self, generation: int) -> Iterator[FlowDelta]:
        """Sockets that were already there at an earlier flush, or still are: first the dead, then the living.

        In this order a socket that dies between the two is seen next time, whole. The maps are read when this returns.
        """
        return self._of(generation, self._maps["dead"].take(), self._maps["socks"].read())

    def _of(self, generation: int, dead: Iterable[tuple[bytes, bytes]],
            living: Iterable[tuple[bytes, bytes]]) -> Iterator[FlowDelta]:
        for name, value in dead:
            self._losses[TOO_FAR] += value[_WENT_TOO_FAR_AT] > 0
            yield self._delta(generation, name, STATE.unpack(value), last=True)
        for key, value in living:
            state = STATE.unpack(value)
            # Of one that only tries to connect nothing is known yet: not even its port.
            if state[18] == generation or not state[_FLAGS] & _WAS_ESTABLISHED:
                continue
            name = key + value[:8]
            if _is_whole(state) and (name in self._reported or self._is_still(key, state)):
                yield self._delta(generation, name, state, last=False)
        self._forget_lost(generation)

    def _forget_lost(self, generation: int) -> None:
        """Sockets that no two flushes saw alive: of one that died beside the first, the second saw the end.

        The others did not fit into `dead`, or had nothing more to tell.
        """
        lately = {(generation - age & 0xFFFF).to_bytes(2, "little") for age in (0, 1)}
        for name in [name for name, told in self._reported.items() if told[-2:] not in lately]:
            del self._reported[name]

    def _is_still(self, key: bytes, state: tuple[Any, ...]) -> bool:
        """Whether a second look shows the same socket: the first may have been half at its predecessor in the map.

        If not, the next flush sees it, or it is merged, or dead, and then counts whole.
        """
        value = self._maps["socks"].get(key)
        if value is None:
            return False
        again = STATE.unpack(value)
        return _is_whole(again) and [again[i] for i in _LASTING] == [state[i] for i in _LASTING]

    def _delta(self, generation: int, name: bytes, state: tuple[Any, ...], *, last: bool) -> FlowDelta:
        (_, written_to, written_from, read_to, read_from, local, remote, local_port, remote_port, netns, pid, comm,
         retransmits, srtt, mdev, established, closed, _, _, direction, _, written_ahead, read_ahead, _) = state
        read, written = read_to - read_from + read_ahead, written_to - written_from + written_ahead
        before = self._reported.pop(name, None) if last else self._reported.get(name)
        read_before, written_before, retransmits_before, established_before, closed_before = (
            _COUNTS.unpack(before)[:-1] if before else _NOTHING)
        # A copy made amid a look may lack what the look before it had: that was told, and is not told again.
        read, written = max(read, read_before), max(written, written_before)
        if not last:
            self._reported[name] = _COUNTS.pack(read, written, retransmits, established, closed, generation & 0xFFFF)
        way = WAYS[direction]
        if not direction:
            way, pid = self._of_old((netns, local, local_port, remote, remote_port), pid, last=last)
        return FlowDelta(local, local_port, remote, remote_port, "tcp", netns, pid, text(comm), way,
                         read - read_before, written - written_before, retransmits - retransmits_before,
                         srtt >> 3, mdev >> 2 if srtt else 0, 1 if srtt else 0,
                         established - established_before, closed - closed_before)


def _is_whole(state: tuple[Any, ...]) -> bool:
    """Whether a ``struct tcp_state`` was read between two writes: its seal is its id, and no count is below zero."""
    return bool(state[0] == state[-1] and state[1] >= state[2] and state[3] >= state[4])
