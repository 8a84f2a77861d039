"""Flows that nobody wants, by rules."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from collector.addresses import Cidr
from kcompat.errors import KcompatError

KINDS = "cidr=NETWORK, port=NUMBER, process=NAME, direction=incoming|outgoing"
_DIRECTIONS = ("incoming", "outgoing")
# The kernel's comm keeps 15 bytes of a name (TASK_COMM_LEN less the NUL).
_COMM_BYTES = 15


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
                raise _bad_rule(rule, f"expected one of {KINDS}")
            match kind:
                case "cidr":
                    cidrs.append(_cidr(rule, value))
                case "port":
                    ports.add(_port(rule, value))
                case "process":
                    # Both the whole name and what comm keeps of it: which one a flow carries depends on /proc.
                    processes |= {value, value.encode()[:_COMM_BYTES].decode(errors="ignore")}
                case "direction" if value in _DIRECTIONS:
                    directions.add(value)
                case "direction":
                    raise _bad_rule(rule, f"a direction is {' or '.join(_DIRECTIONS)}")
                case _:
                    raise _bad_rule(rule, f"expected one of {KINDS}")
        return cls(tuple(cidrs), frozenset(ports), frozenset(processes), frozenset(directions))


NO_EXCLUSIONS = Exclusions()


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
