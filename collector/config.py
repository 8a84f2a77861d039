"""What a user may set for the datasets, checked once, with messages that name the value that was wrong."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from collector.addresses import Cidr
from kcompat.errors import KcompatError

SHORTEST_INTERVAL_S = 1
LONGEST_INTERVAL_S = 30 * 60
DIRECTIONS = ("incoming", "outgoing")
# The kernel's comm keeps 15 bytes of a name (TASK_COMM_LEN less the NUL).
_COMM_BYTES = 15
_EXCLUSION_KINDS = "cidr=NETWORK, port=NUMBER, process=NAME, direction=incoming|outgoing"


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Flows nobody wants: one is left out when any rule matches it. Addresses and ports match on either side."""

    cidrs: tuple[Cidr, ...] = ()
    ports: frozenset[int] = frozenset()
    processes: frozenset[str] = frozenset()
    directions: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, rules: Iterable[str]) -> Exclusions:
        """From rules as a user writes them: `cidr=10.0.0.0/8`, `port=22`, `process=sshd`, `direction=incoming`."""
        cidrs: list[Cidr] = []
        ports: set[int] = set()
        processes: set[str] = set()
        directions: set[str] = set()
        for rule in rules:
            kind, _, value = (part.strip() for part in rule.partition("="))
            if not value:
                raise _bad_rule(rule, f"expected one of {_EXCLUSION_KINDS}")
            match kind:
                case "cidr":
                    cidrs.append(_cidr(rule, value))
                case "port":
                    ports.add(_port(rule, value))
                case "process":
                    # Both the whole name and what comm keeps of it: which one a flow carries depends on /proc.
                    processes |= {value, value.encode()[:_COMM_BYTES].decode(errors="ignore")}
                case "direction" if value in DIRECTIONS:
                    directions.add(value)
                case "direction":
                    raise _bad_rule(rule, f"a direction is {' or '.join(DIRECTIONS)}")
                case _:
                    raise _bad_rule(rule, f"expected one of {_EXCLUSION_KINDS}")
        return cls(tuple(cidrs), frozenset(ports), frozenset(processes), frozenset(directions))


@dataclass(frozen=True, slots=True)
class NetflowOptions:
    """`ephemeral_port` is where client ports turn into `*`; `max_flows` bounds the points of one interval."""

    host: str
    interval_s: float = 60
    ephemeral_port: int = 32768
    loopback: bool = False
    exclude: Exclusions = Exclusions()
    max_flows: int = 1 << 16
    dns_queries: bool = False
    """Whether dnsflow tells names and types apart."""

    def __post_init__(self) -> None:
        if not self.host:
            raise KcompatError("the host name is empty")
        if not SHORTEST_INTERVAL_S <= self.interval_s <= LONGEST_INTERVAL_S:
            raise KcompatError(f"interval of {self.interval_s} s: "
                               f"must be {SHORTEST_INTERVAL_S} s to {LONGEST_INTERVAL_S} s (30 minutes)")
        if not 0 <= self.ephemeral_port <= 0xFFFF:
            raise KcompatError(f"ephemeral port {self.ephemeral_port}: must be 0 to 65535")
        if self.max_flows < 1:
            raise KcompatError(f"at most {self.max_flows} flows an interval: must be 1 or more")


def _cidr(rule: str, value: str) -> Cidr:
    try:
        return Cidr.of(ipaddress.ip_network(value))
    except ValueError as error:
        raise _bad_rule(rule, str(error)) from None


def _port(rule: str, value: str) -> int:
    if value.isascii() and value.isdigit() and 1 <= int(value) <= 0xFFFF:
        return int(value)
    raise _bad_rule(rule, "a port is a number from 1 to 65535")


def _bad_rule(rule: str, fault: str) -> KcompatError:
    return KcompatError(f"exclusion {rule!r}: {fault}")
