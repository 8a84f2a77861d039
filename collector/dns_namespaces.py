"""What dnsflow has of a network namespace: a ring of its packets, and routes that tell which addresses are its own."""

from __future__ import annotations

import os
from pathlib import Path

from collector.packet_ring import PacketRing, Shape
from collector.routes import Routes
from guessers.namespace import Netns, enter


class Namespace:
    """One namespace's ring and routes."""

    def __init__(self, door: Path, home: Netns, code: bytes, shape: Shape) -> None:
        """Made by going there and coming back: only for a thread of our own. Raises OSError."""
        fd = os.open(door, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(fd)
            try:
                self.ring = PacketRing(code, shape)
                try:
                    self.routes = Routes()
                except OSError:
                    self.ring.close()
                    raise
            finally:
                home.enter()
        finally:
            os.close(fd)

    def close(self) -> None:
        self.ring.close()
        self.routes.close()


class Here(Namespace):
    """The namespace we are in, which nobody need be allowed to enter; also the only one of a kernel without any."""

    def __init__(self, code: bytes, shape: Shape) -> None:
        self.ring = PacketRing(code, shape)
        self.routes = Routes()
