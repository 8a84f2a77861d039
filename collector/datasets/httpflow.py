"""Loads httpflow's programs with one of their two hook sets, and makes exchanges of what they tell."""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from collector.config import Options
from collector.datasets.hooks import BACKENDS, Backend, attach_first
from collector.datasets.httpflow_hooks import HOOKS, STAGES
from collector.datasets.httpflow_registers import find_registers
from collector.datasets.wording import text
from collector.http_exchanges import Ends, HttpConnections, Piece, Seen
from collector.protocols.exchange import Exchange, path_of
from collector.threads import forget_ended
from collector.tls_greetings import Greetings
from collector.tls_hooks import PROGRAMS
from collector.tls_libraries import TlsLibraries
from kcompat import probe, template
from kcompat.bpf import compile_cached
from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.load import Loaded
from kcompat.maps import possible_cpus
from kcompat.offsets import Offsets
from kcompat.perf_buffer import PerfBuffer
from kcompat.preemption import preempts_programs

log = logging.getLogger(__name__)

NAME = "httpflow"
SOURCE = Path(__file__).with_name("httpflow.bpf.c")

_MAX_CONNS, _MAX_EXCHANGES = 65536, 16384
# Of each processor; all together no more than this where there are many.
_RING, _SMALLEST_RING, _RINGS = 1 << 21, 1 << 17, 1 << 26
# Longer than any of our programs runs without being preempted: after it none is left that saw the old generation. From
# 7.0 on one may be, for longer: an exchange that it then inserts is told two flushes later; one that it had found is
# taken by then, and what it adds there is lost, or another's.
_GRACE_S = 0.02
_POLL_S = 0.2
# Pieces of one connection are on the rings of several processors: those of the last moment may not all be there.
_SETTLE_NS = 50_000_000
# Of faults in what is seen, which are counted, one is told with where it was.
_FAULT_TOLD_S = 60.0
_LOSSES = ("http connections", "http exchanges", "http calls", "http calls in TLS over unknown sockets",
           "http pieces")

# The second of two tries at an event has this behind the name of the first.
_AGAIN = "__again"
_TRIED = sorted({hook.program.removesuffix(_AGAIN) for hooks in HOOKS.values() for hook in hooks} | PROGRAMS)
_KEY = struct.Struct("<QQ")
_TOLD = struct.Struct("<16s16sHHII16s")
_EXCHANGE_KEY = struct.Struct("<16s16sHHII16sHBBQ120s")
_EXCHANGE = struct.Struct("<QQ")
_PIECE = struct.Struct("<16sQQQQHHBBBB")
# struct conn: its birth; behind its bytes' times and places its ends and owner; its kind, role and whether HTTP/2.
_CONN = struct.Struct("<Q64x60s11xBB3xB")
_FOLLOWED = 2
_OPENED, _REQUESTED, _CLOSED, _GREETED = 1, 2, 3, 4
_CLIENT, _OUTGOING, _TLS = 1, 2, 1

# Of a piece, what sorts it: when it moved.
_Raw = tuple[int, bytes]


def wanted() -> tuple[Field, ...]:
    """Every field the programs can use, the indispensable ones first."""
    hard, soft = template.needed(template.read_source(SOURCE))
    return hard + soft


def render(offsets: Offsets, options: Options) -> str:
    """The C as it will be compiled. Raises UnknownField when an indispensable offset is not known."""
    sizes = {"MAX_CONNS": _MAX_CONNS, "MAX_EXCHANGES": _MAX_EXCHANGES, "EPHEMERAL_PORT": options.ephemeral_port}
    return template.render(NAME, template.read_source(SOURCE), offsets, sizes)


class Httpflow:
    """The loaded programs, and a thread that empties their rings.

    Every exchange is given to `saw`, once; whom a client of TLS asked for, to `greeted`.
    """

    def __init__(self, offsets: Offsets, options: Options, version_code: int, saw: Callable[[Seen], None],
                 backends: Sequence[Backend] = BACKENDS, greeted: Callable[[Ends, str], None] | None = None) -> None:
        compiled, _ = compile_cached(render(offsets, options))
        self.loaded = Loaded(compiled, version_code)
        self._saw = saw
        self._generation = 0
        self._connections = HttpConnections()
        self._greetings, self._greeted = Greetings(), greeted
        self._waiting: list[_Raw] = []
        self._faults: Counter[str] = Counter()
        self._fault_told_at_s = -_FAULT_TOLD_S
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._rings: PerfBuffer | None = None
        self.tls: TlsLibraries | None = None
        try:
            size = max(_SMALLEST_RING, min(_RING, 1 << (_RINGS // possible_cpus()).bit_length() - 1))
            self._rings = PerfBuffer(self.loaded.maps["pieces"], size)
            if preempts_programs():
                self.loaded.maps["twice"].set(bytes(4), struct.pack("<I", 1))
            self.loaded.link("stages", STAGES)
            self.backend = attach_first(NAME, self.loaded, HOOKS, backends)
            if self.backend == "rawtp":
                find_registers(self.loaded)
            if options.http_tls:
                self.tls = self._tls_libraries()
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    @property
    def losses(self) -> dict[str, int]:
        table = self.loaded.maps["losses"]
        counts = {reason: int.from_bytes(table.get(slot.to_bytes(4, "little")) or b"", "little")
                  for slot, reason in enumerate(_LOSSES)}
        assert self._rings
        counts["http pieces"] += self._rings.lost + self._connections.strangers + self._faults["http pieces"]
        counts["http exchanges"] += self._faults["http exchanges"]
        return counts | {"http events": sum(map(self._left_out, _TRIED)),
                         "http connections forgotten": self._connections.forgotten,
                         "half http exchanges": self._connections.untold}

    def _left_out(self, program: str) -> int:
        """Events that its second try, where it has one, was kept from too."""
        tries = [self.loaded.left_out(name) for name in (program, program + _AGAIN)]
        return min((count for count in tries if count is not None), default=0)

    def flush(self) -> None:
        """Everything until now is given to `saw`."""
        self._generation += 1
        self.loaded.maps["generation"].set(bytes(4), struct.pack("<I", self._generation))
        time.sleep(max(_GRACE_S, _SETTLE_NS / 1e9))
        with self._lock:
            self._drain(until_ns=None)
            self._merged()
            self._connections.expire(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        if calls := self.loaded.maps.get("calls"):
            forget_ended(calls)

    def sample(self, one_of: int) -> None:
        """Of connections that begin from now on only one of so many, a power of two, is looked at."""
        self.loaded.maps["sampling"].set(bytes(4), struct.pack("<I", one_of - 1))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._release()

    def _tls_libraries(self) -> TlsLibraries | None:
        """What is not encrypted is seen all the same where this kernel has no uprobes."""
        try:
            probe.uprobe()
            return TlsLibraries(self.loaded)
        except (KcompatError, OSError) as error:
            log.warning("%s sees nothing inside TLS: %s", NAME, error)
            return None

    def _release(self) -> None:
        if self.tls:
            self.tls.close()
        self.loaded.detach()
        if self._rings:
            self._rings.close()
        self.loaded.close()

    def _run(self) -> None:
        assert self._rings
        while not self._stop.is_set():
            self._rings.wait(_POLL_S)
            try:
                with self._lock:
                    self._drain(time.clock_gettime_ns(time.CLOCK_MONOTONIC) - _SETTLE_NS)
            except Exception:
                log.exception("%s goes on", NAME)
            # Without this pause a burst would be taken out piece by piece.
            self._stop.wait(_SETTLE_NS / 1e9)

    def _drain(self, until_ns: int | None) -> None:
        """What moved before `until_ns`; what moved later is kept, for an earlier piece may still come."""
        assert self._rings
        self._waiting += [(int.from_bytes(data[24:32], "little"), data) for data in self._rings.read()]
        self._waiting.sort(key=_time_of)
        ready = len(self._waiting)
        while until_ns is not None and ready and self._waiting[ready - 1][0] >= until_ns:
            ready -= 1
        # Before anything can fail: a piece taken again would be counted again, with all before it.
        taken, self._waiting = self._waiting[:ready], self._waiting[ready:]
        for time_ns, data in taken:
            try:
                self._take(time_ns, data)
            except Exception:
                self._failed("http pieces", 1)

    def _take(self, time_ns: int, data: bytes) -> None:
        key, birth, _, offset, other_ns, lead, size, what, written, role, unseen = _PIECE.unpack_from(data)
        name = (key, birth)
        text = data[_PIECE.size:]
        if what == _OPENED:
            self._connections.opened(name, _ends(_TOLD.unpack_from(text), role == _CLIENT, _layer(key)), time_ns)
        elif what == _REQUESTED:
            self._connections.asked(name, text[:size].rstrip(b"\0"), time_ns)
        elif what == _CLOSED:
            self._connections.closed(name)
        elif what == _GREETED:
            self._greetings.began(name, _ends(_TOLD.unpack_from(text), True, _layer(key)))
        elif name in self._greetings:
            said = self._greetings.went_on(name, offset, text[lead:lead + size])
            if said and self._greeted:
                self._greeted(*said)
        else:
            if name not in self._connections:
                self._take_up(key, birth, time_ns)
            for seen in self._connections.moved(Piece(name, time_ns, bool(written), offset, text[lead:lead + size],
                                                      other_ns, unseen)):
                self._saw(seen)

    def _take_up(self, key: bytes, birth: int, time_ns: int) -> None:
        """One that was forgotten, or whose beginning was lost, from here on: the kernel still knows whose it is."""
        if (value := self.loaded.maps["conns"].get(key)) is None:
            return
        id_, told, kind, role, is_http2 = _CONN.unpack_from(value)
        if id_ == birth and kind == _FOLLOWED:
            ends = _ends(_TOLD.unpack(told), role == _CLIENT, _layer(key))
            self._connections.opened((key, birth), ends, time_ns, is_http2=bool(is_http2))

    def _merged(self) -> None:
        """Exchanges that were paired in the generation that has just ended."""
        table = self.loaded.maps[f"exchanges{self._generation - 1 & 1}"]
        for key, value in table.take():
            for seen in _told(key, value):
                try:
                    self._saw(seen)
                except Exception:
                    self._failed("http exchanges", seen.times)

    def _failed(self, what: str, times: int) -> None:
        self._faults[what] += times
        if time.monotonic() - self._fault_told_at_s >= _FAULT_TOLD_S:
            self._fault_told_at_s = time.monotonic()
            log.exception("%s goes on", NAME)


def _told(key: bytes, value: bytes) -> Iterator[Seen]:
    *told, status, minor, direction, layer, text = _EXCHANGE_KEY.unpack(key)
    count, latency_ns = _EXCHANGE.unpack(value)
    method, _, target = text.rstrip(b"\0").partition(b" ")
    path, _ = path_of(target)
    # What is not printable is no path. An entry may be there before its first count.
    if path and count:
        exchange = Exchange(method.decode(), path, False, status, f"1.{minor}", latency_ns // count, "")
        yield Seen(_ends(told, direction == _OUTGOING, layer), exchange, count, latency_ns)


def _ends(told: Sequence[Any], asks: bool, layer: int) -> Ends:
    local, remote, local_port, remote_port, netns, pid, comm = told
    return Ends(local, local_port, remote, remote_port, netns, pid, text(comm), asks, layer == _TLS)


def _layer(key: bytes) -> int:
    return int(_KEY.unpack(key)[1])


def _time_of(raw: _Raw) -> int:
    return raw[0]
