"""Who listens: from /proc, per network namespace, and where the kernel has none."""

import os
import socket
from pathlib import Path

from collector.listeners import listening, listening_ports

HEAD = "  sl  local_address rem_address   st\n"
LISTENER = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
CONNECTION = "   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000\n"


def process(proc, pid, namespace=None):
    """A process of a made-up /proc, in the namespace a file stands for."""
    (proc / pid / "net").mkdir(parents=True)
    (proc / pid / "net/tcp").write_text(HEAD + LISTENER + CONNECTION)
    if namespace:
        (proc / pid / "ns").mkdir()
        (proc / pid / "ns/net").hardlink_to(namespace)


def test_only_listeners_count():
    assert list(listening_ports([LISTENER, CONNECTION, "rubbish"])) == [8080]


def test_a_real_listener_is_seen_in_our_namespace():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert (Path("/proc/self/ns/net").stat().st_ino, server.getsockname()[1]) in listening()


def test_each_namespace_is_told_once(tmp_path):
    (tmp_path / "one").touch()
    proc = tmp_path / "proc"
    for pid in ("1", str(os.getpid())):
        process(proc, pid, tmp_path / "one")
    assert listening(proc) == {((tmp_path / "one").stat().st_ino, 8080)}


def test_on_a_kernel_without_namespaces_the_number_is_0(tmp_path):
    process(tmp_path, "1")
    process(tmp_path, "self")
    assert listening(tmp_path) == {(0, 8080)}
