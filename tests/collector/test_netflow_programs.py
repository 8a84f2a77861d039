"""Netflow's programs without a kernel, event by event: what a real one does too seldom to be waited for."""

import struct
from dataclasses import replace
from socket import AF_INET, inet_aton

import pytest

from collector.config import Options
from collector.datasets import netflow
from collector.datasets.netflow_connections import _FLOW as FLOW
from collector.datasets.netflow_datagrams import STATE as UDP_STATE
from kcompat.bpf import compile_source
from tests.collector.bpf_machine import UPDATE, Machine
from tests.collector.sockets import OFFSETS, TCP, UDP, Sock, arguments, call, regs

LOST_SOCK, LOST_FLOW, LOST_DEAD, LOST_DATAGRAM, LOST_PEER, LOST_CALL = range(6)
HERE, THERE, ELSEWHERE = ("10.0.0.1", 4000), ("10.0.0.2", 53), ("10.0.0.3", 53)
NOBODY = ("0.0.0.0", 0)


@pytest.fixture(scope="module")
def compiled():
    return compile_source(netflow.render(OFFSETS, Options("box", max_sockets=64, max_flows=64)), "x86_64")


@pytest.fixture
def machine(compiled):
    return Machine(compiled)


def datagrams(machine):
    """pid and bytes read and written by each flow."""
    rows = [UDP_STATE.unpack(value) for _, value in machine.maps["datagrams"].items()]
    return sorted((row[9], row[1], row[2]) for row in rows)


def send(machine, sock, size):
    machine.run("kprobe__udp_send", regs(sock.at))
    machine.run("kretprobe__udp_send", regs(returned=size))


def test_a_datagram_is_counted_for_whoever_sent_it(machine):
    sock = Sock(machine, UDP, HERE, THERE)
    send(machine, sock, 70)
    send(machine, sock, 30)
    assert datagrams(machine) == [(100, 0, 100)] and not any(map(machine.lost, range(6)))


def test_what_another_processor_has_put_in_first_is_no_loss(machine):
    sock = Sock(machine, UDP, HERE, THERE)
    table = machine.maps["datagrams"]

    def meanwhile(helper, name, registers):
        if helper == UPDATE and name == "datagrams":
            table.update(machine.read(registers[2], table.spec.key_size),
                         machine.read(registers[3], table.spec.value_size))

    machine.before_helper = meanwhile
    send(machine, sock, 70)
    assert datagrams(machine) == [(100, 0, 70)] and machine.lost(LOST_DATAGRAM) == 0


def test_where_there_is_no_room_a_datagram_is_lost(machine):
    machine.maps["datagrams"].spec = replace(machine.maps["datagrams"].spec, max_entries=0)
    send(machine, Sock(machine, UDP, HERE, THERE), 70)
    assert datagrams(machine) == [] and machine.lost(LOST_DATAGRAM) == 1


def test_who_goes_on_with_a_flow_owns_it_once_its_owner_has_ended(machine):
    """A server that was started anew may get the memory, and with a port of its own the ends, of the one before."""
    sock = Sock(machine, UDP, HERE, THERE)
    send(machine, sock, 70)
    machine.thread = 200 << 32 | 200
    send(machine, sock, 30)
    assert datagrams(machine) == [(100, 0, 100)]

    machine.maps["ended"].update(struct.pack("<I", 100), bytes(4))
    send(machine, sock, 5)
    machine.thread = 300 << 32 | 300
    send(machine, sock, 6)
    assert datagrams(machine) == [(200, 0, 111)]


ESTABLISHED, SYN_SENT, CLOSE = 1, 2, 7


def changes(machine, sock, *states):
    for state in states:
        machine.run("kprobe__tcp_set_state", regs(sock.at, state))
        sock.set("sock_common.skc_state", state)


@pytest.mark.parametrize("kept", [0, 5])
def test_what_a_socket_sent_again_before_it_connected_again_is_counted_once(machine, kept):
    """`kept`: what the kernel leaves of the first connection's in its number."""
    sock = Sock(machine, TCP, HERE, THERE)
    sock.set("sock_common.skc_state", CLOSE)
    changes(machine, sock, SYN_SENT, ESTABLISHED)
    sock.set("tcp_sock.total_retrans", 5)
    changes(machine, sock, CLOSE)
    sock.set("tcp_sock.total_retrans", kept)
    changes(machine, sock, SYN_SENT, ESTABLISHED)
    sock.set("tcp_sock.total_retrans", kept + 2)
    changes(machine, sock, CLOSE)
    machine.run("kprobe__tcp_v4_destroy_sock", regs(sock.at))

    told = [FLOW.unpack(value) for name in ("flows0", "flows1") for _, value in machine.maps[name].items()]
    assert [flow[5] for flow in told] == [7] and not machine.maps["socks"].items()


READ, RECVMMSG = 0, 299


def receive(machine, sock, *sizes):
    for size in sizes:
        machine.run("rawtp__sock_recv_length", arguments(sock.at, size, 0))


def call_ends(machine, number, second=0, returned=0):
    at = machine.allocate(call(number, second))
    machine.run("rawtp__sys_exit", arguments(at, returned))


def be_partners(machine, sock, remote):
    address = bytes(10) + b"\xff\xff" + inet_aton(remote[0])
    machine.maps["partners"].update(struct.pack("<Q", sock.at), struct.pack("<16sHHI", address, remote[1], HERE[1], 0))


@pytest.mark.parametrize("sizes", [(70,), (70, 30), (70, 30, 5)])
def test_datagrams_of_one_call_are_the_only_partners_or_lost(machine, sizes):
    """As with io_uring: several receives, and one end of a call."""
    sock = Sock(machine, UDP, HERE, NOBODY)
    receive(machine, sock, *sizes)
    call_ends(machine, READ)
    assert datagrams(machine) == [] and machine.lost(LOST_PEER) == len(sizes)

    be_partners(machine, sock, THERE)
    receive(machine, sock, *sizes)
    call_ends(machine, READ)
    assert datagrams(machine) == [(100, sum(sizes), 0)] and machine.lost(LOST_PEER) == len(sizes)
    assert not machine.maps["pendings"].items()


def test_a_datagram_on_another_socket_in_the_same_call_is_none_of_many_messages(machine):
    first, second = (Sock(machine, UDP, HERE, NOBODY) for _ in range(2))
    be_partners(machine, second, THERE)
    receive(machine, first, 70, 30)
    receive(machine, second, 5)
    call_ends(machine, READ)
    assert datagrams(machine) == [(100, 5, 0)] and machine.lost(LOST_PEER) == 2


def test_a_thread_that_never_ends_a_call_loses_what_it_received_and_says_so(machine):
    receive(machine, Sock(machine, UDP, HERE, NOBODY), *[1] * 1100)
    assert machine.lost(LOST_PEER) == 1025


def test_many_messages_of_one_call_are_their_senders(machine):
    sock = Sock(machine, UDP, HERE, NOBODY)
    receive(machine, sock, 70, 30)
    messages = b""
    for (address, port), size in ((THERE, 70), (ELSEWHERE, 30)):
        name = struct.pack("<H", AF_INET) + struct.pack(">H", port) + inet_aton(address) + bytes(8)
        messages += struct.pack("<Q48xI4x", machine.allocate(name, is_users=True), size)
    call_ends(machine, RECVMMSG, machine.allocate(messages, is_users=True), 2)
    assert datagrams(machine) == [(100, 30, 0), (100, 70, 0)] and machine.lost(LOST_PEER) == 0
