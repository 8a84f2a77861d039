"""DNS queries and their answers, seen as packets on port 53 in every network namespace: no BPF program, no offsets."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from collector.dataset import Dataset, Setup, require
from collector.dns_exchanges import PORT, Exchange, Exchanges
from collector.dns_flows import MEASUREMENT, DnsFlows
from collector.dns_namespaces import Here, Namespace
from collector.namespaces import ONLY, Refused, doors
from collector.packet_ring import RETIRE_MS, Packet, Shape
from collector.port_filter import port_filter
from collector.protocols import packets
from collector.record import Record
from guessers.namespace import Netns
from kcompat import probe
from kcompat.errors import KcompatError, Unsupported
from kcompat.hook_status import HookState, HookStatus
from kcompat.privileges import explained

log = logging.getLogger(__name__)

NAME = MEASUREMENT
# The first namespaces, the machine's own before all, get rings for bursts of 45,000 packets; many others smaller ones,
# in which a trickle too may wait for 2.4 s: eight blocks of 64 KiB, 0.4 s, were not enough on a busy machine. A ring is
# resident whether it is used or not. Of half the size, now and then one was full after 20,000 queries at full speed.
_LARGE_RINGS, _LARGE, _SMALL = 2, Shape(1 << 16, 128), Shape(1 << 14, 48)
_MAX_NAMESPACES = 512
_RESCAN_S = 1.0
# Looking for namespaces takes a stat of every process: never more than this share of a processor.
_RESCAN_SHARE = 0.01
# Until every packet of now has been handed over: the kernel's timer of a block runs up to twice.
_SETTLE_S = 2.5 * RETIRE_MS / 1000
_POLL_S = 0.25


class Dnsflow:
    """The running dataset: a thread of its own takes packets out of the rings and looks for new namespaces."""

    how = "packet sockets"
    loaded = None

    def __init__(self, setup: Setup, only: Iterable[int] | None = None) -> None:
        """`only` these namespaces, by number. Raises Missing or Unsupported where there are no packet sockets."""
        require(NAME, probe.packet_socket)
        self._setup = setup
        self._domains = setup.domains
        self._only = None if only is None else set(only)
        self._code = port_filter(PORT)
        self._namespaces: dict[int, Namespace] = {}
        self._refused = Refused(f"{NAME} sees nothing of network namespace %d: %s")
        self._exchanges = Exchanges()
        self._flows = DnsFlows(lambda: setup.options,
                               lambda netns, address: self._namespaces[netns].routes.is_local(address))
        self._packets_lost = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._fault = ""
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._wake_read, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failed or not self._namespaces:
            self.close()
            raise self._failed or Unsupported(f"{NAME} is off: no network namespace lets a packet socket in")

    @property
    def hooks(self) -> Sequence[HookStatus]:
        with self._lock:
            seen = len(self._namespaces)
        attached = HookStatus("port 53", f"packet sockets of {seen} network namespaces", HookState.ATTACHED)
        if not self._refused:
            return [attached]
        return [attached, HookStatus("port 53", f"packet sockets of {len(self._refused)} network namespaces",
                                     HookState.REFUSED, "see the log")]

    @property
    def losses(self) -> Mapping[str, int]:
        return {"packets": self._packets_lost, "tcp streams": self._exchanges.gaps,
                "dns queries": 0, "dns queries replaced": 0} | self._exchanges.lost

    @property
    def left_out(self) -> Counter[str]:
        return self._flows.left_out + Counter(unasked=self._exchanges.unasked)

    def flush(self, time_ns: int) -> list[Record]:
        """What was finished until now. Queries still waiting for their answer are of a later flush.

        Raises what ended the thread, if anything did: whoever asks begins anew.
        """
        if self._failed:
            raise self._failed
        time.sleep(_SETTLE_S)
        with self._lock:
            self._drain()
            return self._flows.take(time_ns, self._domains.name)

    def sample(self, one_of: int) -> bool:
        """By the client's port: of the rest the kernel passes nothing any more."""
        with self._lock:
            self._code = port_filter(PORT, one_of)
            for namespace in self._namespaces.values():
                namespace.ring.pass_only(self._code)
            self._exchanges.sample(one_of)
        return True

    def close(self) -> None:
        self._stop.set()
        with suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")
        self._thread.join()
        with self._lock:
            while self._namespaces:
                self._namespaces.popitem()[1].close()
        self._poll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        try:
            self._collect()
        except BaseException as error:
            if self._ready.is_set():
                log.exception("%s has ended", NAME)
            self._failed = error if isinstance(error, KcompatError) else Unsupported(f"{NAME} is off: {error}")
        finally:
            self._ready.set()

    def _collect(self) -> None:
        with ExitStack() as stack:
            home = Netns() if Path("/proc/self/ns/net").exists() else None
            if home:
                stack.callback(home.close)
            rescan_at_s = 0.0
            while not self._stop.is_set():
                if time.monotonic() >= rescan_at_s:
                    begun_s = time.thread_time()
                    self._look(home)
                    self._ready.set()
                    took_s = time.thread_time() - begun_s
                    rescan_at_s = time.monotonic() + max(_RESCAN_S, took_s / _RESCAN_SHARE)
                self._poll.poll(_POLL_S)
                with self._lock:
                    self._drain()

    def _look(self, home: Netns | None) -> None:
        """Rescans. Where that cannot be now, as without a free descriptor, those there are stay; it is said once."""
        try:
            self._rescan(home)
        except OSError as error:
            if not self._ready.is_set():
                raise
            if str(error) != self._fault:
                log.warning("%s looks for network namespaces later: %s", NAME, explained(error))
            self._fault = str(error)
        else:
            self._fault = ""

    def _rescan(self, home: Netns | None) -> None:
        """Joins namespaces that are new. Lets go of those nobody is in any more: our socket would keep them alive."""
        there = {netns: door for netns, door in doors().items() if self._only is None or netns in self._only}
        for netns in self._namespaces.keys() - there.keys():
            self._leave(netns)
        self._domains.begin(there)
        self._refused.keep(there)
        own = home.inode if home else ONLY
        new = self._refused.to_try(there.keys() - self._namespaces.keys())
        for netns in sorted(new, key=lambda netns: (netns != own, netns)):
            if len(self._namespaces) >= _MAX_NAMESPACES:
                self._refused.add(netns, f"{_MAX_NAMESPACES} are watched already")
                continue
            try:
                self._join(netns, there[netns], home if netns != own else None)
            except FileNotFoundError:
                continue  # its process has ended
            except OSError as error:
                self._refused.add(netns, error)
            else:
                self._refused.discard(netns)

    def _leave(self, netns: int) -> None:
        with self._lock:
            self._drain()
            for exchange in self._exchanges.left(netns):
                self._done(exchange)
            gone = self._namespaces.pop(netns)
            self._poll.unregister(gone.ring.fileno())
            gone.close()
        self._domains.end(netns)

    def _join(self, netns: int, door: Path, home: Netns | None) -> None:
        made = self._open(door, home)
        try:
            self._poll.register(made.ring.fileno(), select.EPOLLIN)
        except OSError:
            made.close()
            raise
        with self._lock:
            self._namespaces[netns] = made

    def _open(self, door: Path, home: Netns | None) -> Namespace:
        shape = _LARGE if len(self._namespaces) < _LARGE_RINGS else _SMALL
        if home is None:
            return Here(self._code, shape)
        return Namespace(door, home, self._code, shape)

    def _drain(self) -> None:
        """Takes everything out of the rings, then finds what has waited too long: in this order, or an answer that is
        there already would come too late.
        """
        # In turns: one ring that is filled as fast as it is emptied would let the others fill up.
        for _ in range(_LARGE.blocks):
            if not sum(self._take(netns, namespace.ring.packets()) for netns, namespace in self._namespaces.items()):
                break
        for netns, namespace in self._namespaces.items():
            if lost := namespace.ring.count_losses():
                self._packets_lost += lost
                log.warning("%s lost %d packets: the ring of network namespace %d was full", NAME, lost, netns)
        # Packets of the last moment may not have been handed over yet.
        for exchange in self._exchanges.expired(time.time_ns() - int(_SETTLE_S * 1e9)):
            self._done(exchange)

    def _take(self, netns: int, some: Iterable[Packet]) -> int:
        """How many these were."""
        saw, done = partial(self._exchanges.saw, netns), self._done
        number = 0
        for time_ns, data, is_whole in some:
            number += 1
            segment = packets.parse(data)
            if segment is None:
                continue
            if not is_whole and segment.is_whole:
                segment = segment._replace(is_whole=False)
            for exchange in saw(segment, time_ns):
                done(exchange)
        return number

    def _done(self, exchange: Exchange) -> None:
        self._flows.add(exchange)
        if exchange.addresses and self._flows.is_of_here(exchange):
            self._domains.learn(exchange.netns, exchange.question, exchange.addresses)


DATASET = Dataset(NAME, Dnsflow)
