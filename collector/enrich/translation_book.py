"""A book of translated connections, to be asked where one of them really goes."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection

from collector.packed_flows import Target
from collector.translation import Translation

BOUND = 1 << 17
# A connection may be told of after the tracker forgot it: at the flush behind its end, at most the longest interval.
_REMEMBERED_S = 1900.0
# netns, protocol, source and its port, destination and its port.
_Key = tuple[int, int, bytes, int, bytes, int]


class Book:
    """Translations by the connection as its socket sees it. Bounded: the oldest goes first, and is counted."""

    def __init__(self, bound: int = BOUND) -> None:
        self.evicted = 0
        self._bound = bound
        self._targets: OrderedDict[_Key, Target] = OrderedDict()
        self._by_source: dict[tuple[int, int, bytes, bytes, int], Counter[Target]] = {}
        self._ended: deque[tuple[float, _Key, Target]] = deque()

    def __len__(self) -> int:
        return len(self._targets)

    def add(self, netns: int, one: Translation) -> None:
        key = (netns, *one[:5])
        self._drop(key)
        target = self._targets[key] = one[5:]
        self._by_source.setdefault(_source(key), Counter())[target] += 1
        if len(self._targets) > self._bound:
            self._drop(next(iter(self._targets)))
            self.evicted += 1

    def end(self, netns: int, one: Translation, now_s: float) -> None:
        key = (netns, *one[:5])
        target = self._targets.get(key)
        if target == one[5:]:
            self._ended.append((now_s, key, target))
        while self._ended and (self._ended[0][0] + _REMEMBERED_S < now_s or len(self._ended) > self._bound):
            _, key, target = self._ended.popleft()
            # Another connection between the same ends has another tuple, if an equal one.
            if self._targets.get(key) is target:
                self._drop(key)

    def forget(self, namespaces: Collection[int]) -> None:
        """All that was told of these, whose numbers are others' by now: in one pass."""
        for key in [key for key in self._targets if key[0] in namespaces]:
            self._drop(key)

    def find(self, netns: int, protocol: int, local: bytes, local_port: int, remote: bytes, remote_port: int, *,
             any_port: bool = False) -> Target | None:
        """`any_port`: of connections merged, whose own ports are not known; only where all went the same way."""
        found = self._targets.get((netns, protocol, local, local_port, remote, remote_port))
        if found is None and any_port:
            targets = self._by_source.get((netns, protocol, local, remote, remote_port), ())
            found = next(iter(targets)) if len(targets) == 1 else None
        return found

    def _drop(self, key: _Key) -> None:
        target = self._targets.pop(key, None)
        if target is None:
            return
        targets = self._by_source[_source(key)]
        targets[target] -= 1
        if not targets[target]:
            del targets[target]
        if not targets:
            del self._by_source[_source(key)]


def _source(key: _Key) -> tuple[int, int, bytes, bytes, int]:
    netns, protocol, source, _, destination, destination_port = key
    return netns, protocol, source, destination, destination_port
