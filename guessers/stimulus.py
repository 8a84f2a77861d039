"""Known traffic: sockets with random addresses, ports, options and histories, so that no two fields stay equal."""

from __future__ import annotations

import ctypes
import itertools
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from guessers.facts import SO_MARK, SO_PROTOCOL
from guessers.histories import FINALES, STEPS
from guessers.namespace import LOOPBACK_IFINDEX, add_ipv6, wait_until_bindable

_TCP_QUICKACK = 12
_IPV6_V6ONLY = 26
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
# Protocol numbers nobody has been given (IANA), for raw sockets: any value will do, as long as it is rare.
UNASSIGNED = range(148, 250)
_PATIENCE_S = 5.0  # a loopback connect takes 50 us, or 50 ms in an emulated machine


@dataclass(slots=True)
class End:
    """One socket of ours, the interface it is bound to (0: none), and a word for the evidence."""

    sock: socket.socket
    bound_dev_if: int
    label: str


class Addresses:
    """Random local addresses. In a namespace of our own IPv6 addresses are made, elsewhere mapped ones are used."""

    def __init__(self, rng: random.Random, *, private: bool, ipv6: bool) -> None:
        self._rng = rng
        self.ipv6 = ipv6
        self._pool: list[str] = []
        if private and ipv6:
            with suppress(OSError):
                for _ in range(12):
                    address = self.unique_local()
                    add_ipv6(address)
                    self._pool.append(address)
                self._pool = [address for address in self._pool if wait_until_bindable(address)]

    @property
    def native_ipv6(self) -> bool:
        """Whether IPv6 sockets get IPv6 addresses, and not IPv4 ones in other clothes."""
        return bool(self._pool)

    def local(self, family: int) -> str:
        """An address both ends can have: 127/8 is all ours, and so is what we gave the loopback."""
        if family == socket.AF_INET:
            return ".".join(["127", *(str(self._rng.randint(1, 254)) for _ in range(3))])
        if self._pool:
            return self._rng.choice(self._pool)
        return "::ffff:" + self.local(socket.AF_INET)

    def unique_local(self) -> str:
        """An IPv6 address that is nobody's."""
        return socket.inet_ntop(socket.AF_INET6, b"\xfd" + self._rng.randbytes(15))

    def pair(self, family: int) -> tuple[str, str]:
        one = self.local(family)
        while (other := self.local(family)) == one:
            pass
        return one, other

    def multicast(self, family: int) -> str:
        if family == socket.AF_INET:
            return ".".join(["239", *(str(self._rng.randint(1, 254)) for _ in range(3))])
        return socket.inet_ntop(socket.AF_INET6, b"\xff\x0e" + self._rng.randbytes(14))


class Stimulus:
    """Makes sockets for one run; `close` closes them all."""

    def __init__(self, rng: random.Random, addresses: Addresses, coin: Callable[[], bool] | None = None) -> None:
        """`coin` says of each socket whether it is tied to the loopback device."""
        self.rng = rng
        self.addresses = addresses
        self._coin = coin or (lambda: rng.random() < 0.5)
        self._finales = itertools.cycle(rng.sample(FINALES, len(FINALES)))
        self.connections = 0
        self._open: list[socket.socket] = []

    def open(self, family: int, kind: int, protocol: int = 0) -> End:
        """An unbound socket with random mark and buffer sizes, tied to the loopback device by the toss of a coin."""
        sock = socket.socket(family, kind, protocol)
        self._open.append(sock)
        sock.setblocking(False)
        if family == socket.AF_INET6 and kind != socket.SOCK_RAW:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_V6ONLY, 0)
        self.plant(sock)
        device = self._coin()
        if device:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
            except PermissionError:  # CAP_NET_RAW, before 5.7
                device = False
        return End(sock, LOOPBACK_IFINDEX if device else 0, f"{_family(family)} {_kind(kind)}")

    def plant(self, sock: socket.socket) -> None:
        """Gives options random values. Done again after a connect, copies made by the connect go stale."""
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, self.rng.randrange(20_000, 100_000))
        with suppress(PermissionError):  # CAP_NET_ADMIN
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self.rng.randrange(1 << 24, 1 << 31))

    def bind(self, end: End, address: str) -> End:
        """Binds to a random port whose two bytes differ, so that the byte order shows."""
        while True:
            port = self.rng.randrange(1024, 65536)
            if port >> 8 == port & 0xFF:
                continue
            try:
                end.sock.bind((address, port))
            except OSError as error:
                if error.errno != 98:  # EADDRINUSE: somebody has it, take another
                    raise
                continue
            return end

    def raw(self, family: int) -> End:
        local, remote = self.addresses.pair(family)
        end = self.open(family, socket.SOCK_RAW, self.rng.choice(UNASSIGNED))
        end.sock.bind((local, 0))
        end.sock.connect((remote, 0))
        return end

    def receiver(self, end: End, address: str) -> tuple[str, int]:
        """Where at `address` a socket of ours takes what `end` sends, so that no ICMP error answers it.

        Who sends such an error looks for its route also by the packet's own key turned round, protocol and mark
        included: icmp_route_lookup() and icmpv6_route_lookup() of Linux.
        """
        kind = end.sock.type
        taking = self.open(end.sock.family, kind, end.sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL))
        if kind == socket.SOCK_RAW:
            taking.sock.bind((address, 0))
        else:
            self.bind(taking, address)
        host, port = taking.sock.getsockname()[:2]
        return host, port if kind != socket.SOCK_RAW else 0

    def unrouted(self, kind: int) -> tuple[End, tuple[str, int]]:
        """An IPv6 socket bound to an address that is not ours, and another such address to look for a route to."""
        raw = kind == socket.SOCK_RAW
        end = self.open(socket.AF_INET6, kind, self.rng.choice(UNASSIGNED) if raw else 0)
        if raw:
            end.sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)  # 4.15 on
            end.sock.bind((self.addresses.unique_local(), 0))
        else:
            end.sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            self.bind(end, self.addresses.unique_local())
        return end, (self.addresses.unique_local(), 0 if raw else self.rng.randrange(1024, 65536))

    def connect(self, client: End, server: End) -> End:
        """Connects and returns the accepted end. Both are alive for `walk`."""
        self.connections += 1
        for end in (client, server):
            end.sock.settimeout(_PATIENCE_S)
            # Small segments fill the congestion window, so that what is written is ahead of what is sent.
            end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, self.rng.randrange(300, 1200))
        client.sock.connect(server.sock.getsockname()[:2])
        sock, _ = server.sock.accept()
        server.sock.setblocking(False)
        self._open.append(sock)
        accepted = End(sock, server.bound_dev_if, server.label.replace("listening", "accepted"))
        for end in (client, accepted):
            end.sock.setblocking(False)
            end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            end.sock.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 0)
            self.plant(end.sock)
        return accepted

    def walk(self, one: End, other: End, steps: int) -> None:
        """A random history: what was sent, read, acknowledged and lost differs from connection to connection.

        Fields that are often equal (snd_nxt and pushed_seq, snd_una and snd_up, rcv_nxt and rcv_wup, copied_seq and
        rcvq_space.seq, total_retrans and undo_retrans) are not equal in all of them.
        """
        ends = (one.sock, other.sock)
        # Often one end never speaks: what is set when data is first sent (cwnd_usage_seq) is then still unset.
        ways = self.rng.choice(([ends, ends[::-1]], [ends], [ends[::-1]]))
        for _ in range(steps):
            self.rng.choice(STEPS)(self.rng, *self.rng.choice(ways))
        # The last word decides how far ahead of its look-alikes each sequence number is.
        next(self._finales)(self.rng, *self.rng.choice(ways))

    @staticmethod
    def disconnect(end: End) -> None:
        """connect(2) to AF_UNSPEC: a UDP socket forgets its peer, copies of the peer's address stay behind."""
        unspec = bytes(16)
        if ctypes.CDLL(None, use_errno=True).connect(end.sock.fileno(), unspec, len(unspec)):
            raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")
        end.bound_dev_if = 0  # __udp_disconnect() undoes that too
        end.label += " disconnected"

    def close(self) -> None:
        for sock in self._open:
            sock.close()
        self._open.clear()


def _family(family: int) -> str:
    return "IPv4" if family == socket.AF_INET else "IPv6"


def _kind(kind: int) -> str:
    return {socket.SOCK_STREAM: "TCP", socket.SOCK_DGRAM: "UDP", socket.SOCK_RAW: "raw"}[socket.SocketKind(kind)]
