"""What there was before: sock_diag beside pyroute2's reading of it, and whose sockets they are."""

import os
import socket
from pathlib import Path

import pytest

from collector import sock_diag
from collector.seeds import pids_of, seeds

MAPPED = bytes(10) + b"\xff\xff"


def packed(address):
    return socket.inet_pton(socket.AF_INET6, address if ":" in address else f"::ffff:{address}")


@pytest.fixture
def connection():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with client, accepted:
            yield server, client, accepted


def test_sockets_are_those_pyroute2_lists(connection):
    from pyroute2 import DiagSocket

    server, client, accepted = connection
    with DiagSocket() as asked:
        asked.bind()
        theirs = {(one["idiag_state"], one["idiag_src"], one["idiag_sport"], one["idiag_dst"], one["idiag_dport"],
                   one["idiag_inode"]) for one in asked.get_sock_stats(family=socket.AF_INET)}
    mine = {one.inode: one for one in sock_diag.sockets(socket.IPPROTO_TCP)}
    for sock in (client, accepted):
        one = mine[os.fstat(sock.fileno()).st_ino]
        (local, port), (remote, remote_port) = sock.getsockname(), sock.getpeername()
        assert one == sock_diag.Sock(1, packed(local), port, packed(remote), remote_port, one.inode)
        assert (1, local, port, remote, remote_port, one.inode) in theirs
    assert mine[os.fstat(server.fileno()).st_ino].state == sock_diag.LISTEN


def test_old_connections_have_a_direction_and_an_owner(connection):
    _, client, accepted = connection
    netns = Path("/proc/self/ns/net").stat().st_ino
    found = seeds().old
    for sock, direction in ((client, "outgoing"), (accepted, "incoming")):
        (local, port), (remote, remote_port) = sock.getsockname(), sock.getpeername()
        old = found[netns, packed(local), port, packed(remote), remote_port]
        assert old == (direction, os.getpid())


def test_a_connection_that_only_waits_for_its_time_to_pass_is_none():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            ends = client.getsockname()[1], accepted.getsockname()[1]
            client.close()
            assert not accepted.recv(1)
    waiting = [(one.local_port, one.remote_port) for one in sock_diag.sockets(socket.IPPROTO_TCP)
               if one.state == sock_diag.TIME_WAIT]
    assert ends in waiting
    assert ends not in {(local_port, remote_port) for _, _, local_port, _, remote_port in seeds().old}


def test_a_datagram_server_is_bound_to_a_port_it_is_known_by():
    netns = Path("/proc/self/ns/net").stat().st_ino
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        for port in range(20_000, 20_100):
            try:
                client.bind(("127.0.0.1", port))
            except OSError:
                continue
            break
        bound = seeds().bound
    assert (netns, port) in bound
    assert not [one for one in bound if one[1] >= 32768 and one[0] == netns]


def test_owners_are_found_by_their_descriptors(tmp_path):
    for pid, inode in (("20", 7), ("3", 7), ("4", 8)):
        (tmp_path / pid / "fd").mkdir(parents=True)
        (tmp_path / pid / "fd" / "5").symlink_to(f"socket:[{inode}]")
        (tmp_path / pid / "fd" / "6").symlink_to("/dev/null")
    (tmp_path / "self").mkdir()
    assert pids_of({7, 9}, tmp_path) == {7: 3}
