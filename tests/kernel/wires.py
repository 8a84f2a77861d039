"""Network namespaces with a wire between them, for traffic that nobody else's is in; gone afterwards."""

import os
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from guessers.namespace import enter, in_own_thread


class End(NamedTuple):
    """One namespace: `name` for ip-netns(8), `number` as the programs have it."""

    name: str
    number: int

    def run(self, work):
        """`work()` in a thread that is in the namespace."""
        def body(_):
            fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                enter(fd)
            finally:
                os.close(fd)
            return work()
        return in_own_thread(body)

    def command(self, *arguments):
        return ["ip", "netns", "exec", self.name, *map(str, arguments)]


def ip(*arguments):
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True, timeout=20)


@contextmanager
def namespace(label):
    name = f"kcompat-{label}-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield End(name, Path(f"/run/netns/{name}").stat().st_ino)
    finally:
        ip("netns", "del", name)


@contextmanager
def wire(*addresses):
    """Two namespaces and a veth pair; `addresses` are (one end's, the other's), each with its prefix length."""
    with ExitStack() as stack:
        ends = [stack.enter_context(namespace(label)) for label in ("a", "b")]
        ip("-n", ends[0].name, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", ends[1].name)
        for pair in addresses:
            for end, address in zip(ends, pair, strict=True):
                ip("-n", end.name, "address", "add", address, "dev", "wire", *(["nodad"] if ":" in address else []))
        for end in ends:
            ip("-n", end.name, "link", "set", "wire", "up")
        yield ends


@contextmanager
def answering(answer, family=socket.AF_INET, address="127.0.0.1", port=53):
    """A UDP server of fixed bytes, in the namespace of the calling thread: `answer(query)` is what it sends, if any."""
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        server.settimeout(0.1)
        done = threading.Event()

        def serve():
            while not done.is_set():
                try:
                    data, peer = server.recvfrom(65_535)
                except TimeoutError:
                    continue
                if reply := answer(data):
                    server.sendto(reply, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            done.set()
            thread.join()


def raw_frame(interface, frame):
    """Sends a whole Ethernet frame out of an interface of this thread's namespace."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((interface, 0))
        sender.send(frame)


def ethernet(kind, payload, destination=b"\xff" * 6, source=b"\2" + bytes(5)):
    return destination + source + struct.pack("!H", kind) + payload
