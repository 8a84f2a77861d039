"""The rival of the guess: a sequential scan in the manner of tcptracer-bpf, one offset tried per new TCP connection.

Its rules are kept as they are: probe_read of one offset per event, one byte further when the value is another, the
first match is final, nothing is checked a second time. The program comes compiled, as tcptracer-bpf ships it.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guessers.namespace import Netns, in_own_thread
from kcompat.bpf import Object, compile_source
from kcompat.errors import KcompatError, Missing
from kcompat.fields import Field, find
from kcompat.kernel import Kernel
from kcompat.load import Loaded
from kcompat.version import running_version_code

_CHECKING, _CHECKED = 1, 2
_U32, _U16, _NETNS = 1, 2, 3
_STATUS = struct.Struct("<QIIIIiI")
_KEY = bytes(8)
_LIMIT, _LIMIT_INET_SOCK = 400, 2000
_MISSES, _PAUSE_S = 100, 0.01
_SERVER = "127.0.0.2"  # from 127.0.0.1, which the kernel picks
_LINGER_0 = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Find:
    """Where the scan believes a field to be (None: it ran over its limit), and what that took."""

    field: Field
    offset: int | None
    connections: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Scan:
    """One whole scan. Missed events (the connect was seen by another thread) are among the connections."""

    hook: str
    finds: tuple[Find, ...]
    connections: int
    missed: int
    seconds: float


def compiled() -> tuple[Object, int]:
    """The scan's programs and the version number they load with."""
    source = (Path(__file__).parent / "sequential.bpf.c").read_text()
    return compile_source(source), running_version_code(Kernel.running().release)


def scan(program: Object, version_code: int) -> Scan:
    """Scans for saddr, daddr, family, sport, dport and netns, in a network namespace of its own."""
    return in_own_thread(lambda _: _in_private(program, version_code))


def _in_private(program: Object, version_code: int) -> Scan:
    started = time.monotonic()
    namespace = Netns.fresh()
    try:
        with Loaded(program, version_code) as loaded, socket.create_server((_SERVER, 0)) as server:
            hook = _attach(loaded)
            connector = _Connector(loaded, server)
            finds = _find_all(connector, server.getsockname()[1], namespace.inode)
            return Scan(hook, finds, connector.connections, connector.missed, time.monotonic() - started)
    finally:
        namespace.close()


def _attach(loaded: Loaded) -> str:
    """As the original where there are kprobes, else the nearest tracepoint."""
    try:
        loaded.attach("kprobe__tcp_v4_connect", "tcp_v4_connect")
        loaded.attach("kretprobe__tcp_v4_connect", "tcp_v4_connect")
    except (OSError, Missing):
        loaded.detach()
        loaded.attach("rawtp__inet_sock_set_state", "inet_sock_set_state")
        return "raw tracepoint inet_sock_set_state"
    return "kprobe and kretprobe tcp_v4_connect"


@dataclass(frozen=True, slots=True)
class _Seen:
    value: int
    error: int
    port: int
    """The client's, as getsockname(2) tells it."""


class _Connector:
    """Makes one connection per question and counts them."""

    def __init__(self, loaded: Loaded, server: socket.socket) -> None:
        self._status = loaded.maps["tcptracer_status"]
        self._server = server
        self._target = server.getsockname()
        self._pid_tgid = os.getpid() << 32 | threading.get_native_id()
        self.connections = 0
        self.missed = 0

    def ask(self, what: int, offset: int, offset_ino: int = 0) -> _Seen:
        """What stands at `offset` of the sock of a new connection. Raises KcompatError after 100 missed events."""
        while True:
            self._status.set(_KEY, _STATUS.pack(self._pid_tgid, _CHECKING, what, offset, offset_ino, 0, 0))
            port = self._connect()
            _, state, _, _, _, error, value = _STATUS.unpack(self._status.get(_KEY) or bytes(_STATUS.size))
            if state == _CHECKED:
                return _Seen(value, error, port)
            self.missed += 1
            if self.missed > _MISSES:
                raise KcompatError(f"the sequential scan missed {_MISSES} events: its hook does not see our connects")
            time.sleep(_PAUSE_S)

    def _connect(self) -> int:
        self.connections += 1
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            # Closed by a reset: nothing lingers in TIME_WAIT.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            client.connect(self._target)
            self._server.accept()[0].close()
            return int(client.getsockname()[1])


def _find_all(connector: _Connector, server_port: int, inode: int) -> tuple[Find, ...]:
    """In the original's order; it gives up at the first field it cannot find, and so does this."""
    finds: list[Find] = []

    def simple(name: str, what: int, expected: Callable[[_Seen], int], start: int = 0, limit: int = _LIMIT) -> bool:
        before, clock = connector.connections, time.monotonic()
        found = None
        for offset in range(start, limit):
            seen = connector.ask(what, offset)
            if seen.value == expected(seen):
                found = offset
                break
        finds.append(Find(find(name), found, connector.connections - before, time.monotonic() - clock))
        return found is not None

    saddr, daddr = (int.from_bytes(socket.inet_aton(a), "little") for a in ("127.0.0.1", _SERVER))
    if (simple("skc_rcv_saddr", _U32, lambda _: saddr)
            and simple("skc_daddr", _U32, lambda _: daddr)
            and simple("skc_family", _U16, lambda _: socket.AF_INET)
            # "We know that the sport is after the family": it is in struct inet_sock, behind struct sock.
            and simple("inet_sport", _U16, lambda seen: socket.htons(seen.port), finds[2].offset or 0,
                       _LIMIT_INET_SOCK)
            and simple("skc_dport", _U16, lambda _: socket.htons(server_port))):
        finds += _find_netns(connector, inode)
    return tuple(finds)


def _find_netns(connector: _Connector, inode: int) -> tuple[Find, Find]:
    """The pointer and the number behind it, nested: an unreadable pointer or the limit moves the pointer on."""
    before, clock = connector.connections, time.monotonic()
    net, ino = 0, 0
    while net < _LIMIT:
        seen = connector.ask(_NETNS, net, ino)
        if seen.error == 0 and seen.value == inode:
            break
        ino += 1
        if seen.error or ino >= _LIMIT:
            net, ino = net + 1, 0
    found = net < _LIMIT
    used, seconds = connector.connections - before, time.monotonic() - clock
    return (Find(find("skc_net"), net if found else None, used, seconds),
            Find(find("net.ns.inum"), ino if found else None, 0, 0.0))
