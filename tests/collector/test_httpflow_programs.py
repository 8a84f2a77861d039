"""Httpflow's programs without a kernel, call by call: what a real one does too seldom to be waited for."""

import struct
from dataclasses import replace

import pytest

from collector.config import Options
from collector.datasets import httpflow
from collector.datasets.httpflow_hooks import STAGES
from kcompat.bpf import compile_source
from kcompat.fields import find
from tests.collector.bpf_machine import UPDATE, Machine
from tests.collector.sockets import OFFSETS, TCP, Sock, regs

LOST_CONN = 0
HERE, THERE = ("10.0.0.1", 80), ("10.0.0.2", 40_000)


@pytest.fixture(scope="module")
def compiled():
    return compile_source(httpflow.render(OFFSETS, Options("box")), "x86_64")


@pytest.fixture
def machine(compiled):
    made = Machine(compiled)
    made.stages = dict(enumerate(STAGES))
    return made


class Server:
    """A server's socket; its calls one after the other, a millisecond apart."""

    def __init__(self, machine):
        self.machine, self.sock = machine, Sock(machine, TCP, HERE, THERE)
        self.sent = self.taken = 1000

    def _call(self, program, data):
        iov = struct.pack("<QQ", self.machine.allocate(data.ljust(4096), is_users=True), len(data))
        message = bytearray(4096)
        for name, value in (("iov", self.machine.allocate(iov)), ("count", len(data)), ("nr_segs", 1)):
            struct.pack_into("<Q", message, OFFSETS[find(f"msghdr.msg_iter.{name}")].offset, value)
        self.machine.run(f"kprobe__{program}", regs(self.sock.at, self.machine.allocate(message)))
        yield
        self.machine.now_ns += 1_000_000
        self.machine.run(f"kretprobe__{program}", regs(returned=len(data)))

    def reads(self, data):
        for _ in self._call("tcp_recvmsg", data):
            self.taken += len(data)
            self.sock.set("tcp_sock.copied_seq", self.taken)

    def writes(self, data):
        for _ in self._call("tcp_sendmsg", data):
            self.sent += len(data)
            self.sock.set("tcp_sock.write_seq", self.sent)


def exchanges(machine):
    """Path and status of those that were paired, and how often."""
    found = {}
    for key, value in [*machine.maps["exchanges0"].items(), *machine.maps["exchanges1"].items()]:
        *_, status, _, _, _, text = httpflow._EXCHANGE_KEY.unpack(key)
        found[text.rstrip(b"\0").decode().split()[1], status] = httpflow._EXCHANGE.unpack(value)[0]
    return found


def request(path):
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def response(status):
    return f"HTTP/1.1 {status} Fine\r\nContent-Length: 0\r\n\r\n".encode()


def test_requests_are_paired_with_their_responses(machine):
    server = Server(machine)
    for number in range(1, 4):
        server.reads(request(f"/{number}"))
        server.writes(response(200 + number))
    assert exchanges(machine) == {("/1", 201): 1, ("/2", 202): 1, ("/3", 203): 1}


def test_what_another_processor_has_put_in_first_is_no_loss(machine):
    server, table = Server(machine), machine.maps["conns"]

    def meanwhile(helper, name, registers):
        if helper == UPDATE and name == "conns":
            table.update(machine.read(registers[2], table.spec.key_size),
                         machine.read(registers[3], table.spec.value_size))

    machine.before_helper = meanwhile
    server.reads(request("/1"))
    server.writes(response(201))
    assert exchanges(machine) == {("/1", 201): 1} and machine.lost(LOST_CONN) == 0


def test_where_there_is_no_room_a_connection_is_lost(machine):
    machine.maps["conns"].spec = replace(machine.maps["conns"].spec, max_entries=0)
    Server(machine).reads(request("/1"))
    assert exchanges(machine) == {} and machine.lost(LOST_CONN) == 1
