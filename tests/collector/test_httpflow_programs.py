"""Httpflow's programs without a kernel, call by call: what a real one does too seldom to be waited for."""

import struct
from dataclasses import replace
from functools import partial

import pytest

from collector.config import Options
from collector.datasets import httpflow
from collector.datasets.httpflow_hooks import STAGES
from collector.http_exchanges import HttpConnections
from collector.tls_greetings import Greetings
from kcompat.bpf import compile_source
from kcompat.fields import find
from tests.collector.bpf_machine import UPDATE, Machine
from tests.collector.sockets import OFFSETS, TCP, Sock, arguments, call, regs

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


class End:
    """A socket; its calls one after the other, a millisecond apart."""

    def __init__(self, machine):
        self.machine, self.sock = machine, Sock(machine, TCP, HERE, THERE)
        self.sent = self.taken = 1000

    def moves_unseen(self, sent=b"", taken=b""):
        """Calls of which no program was told."""
        self.sent += len(sent)
        self.taken += len(taken)
        self.sock.set("tcp_sock.write_seq", self.sent)
        self.sock.set("tcp_sock.copied_seq", self.taken)

    def _begins(self, program, data):
        iov = struct.pack("<QQ", self.machine.allocate(data.ljust(4096), is_users=True), len(data))
        message = bytearray(4096)
        for name, value in (("iov", self.machine.allocate(iov)), ("count", len(data)), ("nr_segs", 1)):
            struct.pack_into("<Q", message, OFFSETS[find(f"msghdr.msg_iter.{name}")].offset, value)
        self.machine.run(f"kprobe__{program}", regs(self.sock.at, self.machine.allocate(message)))

    def _ends(self, program, data):
        self.machine.now_ns += 1_000_000
        self.machine.run(f"kretprobe__{program}", regs(returned=len(data)))

    def reads(self, data):
        self._begins("tcp_recvmsg", data)
        self.moves_unseen(taken=data)
        self._ends("tcp_recvmsg", data)

    def writes(self, data, meanwhile=lambda: None):
        self._begins("tcp_sendmsg", data)
        self.moves_unseen(sent=data)
        meanwhile()
        self._ends("tcp_sendmsg", data)


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
    server = End(machine)
    for number in range(1, 4):
        server.reads(request(f"/{number}"))
        server.writes(response(200 + number))
    assert exchanges(machine) == {("/1", 201): 1, ("/2", 202): 1, ("/3", 203): 1}


@pytest.mark.parametrize("first", [1, 2])
def test_an_answer_that_is_told_of_before_its_request_is_its_own(machine, first):
    """Of two threads of a client the one that reads is told of first, from some request on."""
    client = End(machine)

    def answered(number):
        machine.thread += 1
        client.reads(response(200 + number))
        machine.thread -= 1

    for number in range(1, 6):
        if number < first:
            client.writes(request(f"/{number}"))
            client.reads(response(200 + number))
        else:
            client.writes(request(f"/{number}"), partial(answered, number))
    assert exchanges(machine) == {(f"/{n}", 200 + n): 1 for n in range(1, 6)}


@pytest.mark.parametrize("missed", [1, 2, 3])
@pytest.mark.parametrize("asks", [True, False], ids=["client", "server"])
def test_a_request_that_was_missed_gives_no_other_the_answer(machine, asks, missed):
    end = End(machine)
    ask, answer, moved = (end.writes, end.reads, "sent") if asks else (end.reads, end.writes, "taken")
    for number in range(1, 7):
        if number == missed:
            end.moves_unseen(**{moved: request(f"/{number}")})
        else:
            ask(request(f"/{number}"))
        answer(response(200 + number))
    assert exchanges(machine) == {(f"/{n}", 200 + n): 1 for n in range(1, 7) if n != missed}


def test_what_another_processor_has_put_in_first_is_no_loss(machine):
    server, table = End(machine), machine.maps["conns"]

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
    End(machine).reads(request("/1"))
    assert exchanges(machine) == {} and machine.lost(LOST_CONN) == 1


STACK, REGISTERS_AT = 16384, 16384 - 168  # of a thread's, and how far from its beginning they stand


class Preempted(End):
    """Where raw tracepoints tell, and each event is tried twice; both may be left out."""

    def __init__(self, machine):
        super().__init__(machine)
        machine.maps["twice"].update(bytes(4), struct.pack("<I", 1))
        machine.maps["registers"].update(bytes(4), struct.pack("<Q", REGISTERS_AT))

    def _told(self, what, number, data, growth=None):
        self.machine.now_ns += 1_000_000
        sent, taken = (len(data) if growth is None else growth) * (what == "send"), len(data) * (what == "recv")
        self.moves_unseen(sent=bytes(sent), taken=bytes(taken))
        where = self.machine.allocate(data.ljust(4096), is_users=True)
        stack = (arguments(self.sock.at, len(data), 0).ljust(REGISTERS_AT, b"\0")
                 + call(number, second=where, third=len(data)))
        for again in ("", "__again"):
            self.machine.run(f"rawtp__sock_{what}_length{again}", stack)

    def reads(self, data):
        self._told("recv", 0, data)

    def writes(self, data, growth=None):
        self._told("send", 1, data, growth)


def all_exchanges(machine):
    """Those that were paired in the kernel, and those user space makes of the pieces."""
    found, user = exchanges(machine), object.__new__(httpflow.Httpflow)
    user._connections, user._greetings, user._greeted = HttpConnections(), Greetings(), None
    user._saw = lambda seen: found.update({(seen.exchange.path, seen.exchange.status_code): seen.times})
    for data in machine.told:
        user._take(int.from_bytes(data[24:32], "little"), data)
    return found, user._connections.untold


def converse(end, asks, missed, numbers, growth=0, is_split=False):
    """Requests and responses one after the other, but of one a call that nobody is told of."""
    sends, takes = (end.writes, end.reads) if asks else (end.reads, end.writes)
    for number in numbers:
        asked, answered = request(f"/{number}"), response(200 + number)
        for what, data, tell in (("request", asked, sends), ("response", answered, takes)):
            if (what, number) == missed:
                is_sent = asks == (what == "request")
                end.moves_unseen(sent=data if is_sent else b"", taken=b"" if is_sent else data)
            elif growth and tell == end.writes:
                tell(data, len(data) + growth)
            elif is_split and what == "request":
                tell(data[:16])
                tell(data[16:])
            else:
                tell(data)


# Before a number has said once what calls moved it is not believed.
MISSED = [("request", number) for number in range(1, 7)] + [("response", number) for number in range(3, 7)]


# By kprobes only what is read has a number that is looked at, from the first read on.
READ_BY_KPROBES = [(End, True, ("response", number)) for number in range(2, 7)] + [
    (End, False, ("request", number)) for number in range(1, 7)]


@pytest.mark.parametrize(("kind", "asks", "missed"), [
    *((Preempted, asks, missed) for asks in (True, False) for missed in MISSED), *READ_BY_KPROBES])
def test_what_was_missed_shifts_nothing_also_in_user_space(machine, kind, asks, missed):
    end = kind(machine)
    converse(end, asks, missed, range(1, 4))
    # From here on it is followed.
    converse(end, asks, missed, [4], is_split=True)
    converse(end, asks, missed, range(5, 8))
    found, untold = all_exchanges(machine)
    assert found == {(f"/{n}", 200 + n): 1 for n in range(1, 8) if n != missed[1]}
    assert untold == (missed[0] == "response")


def test_what_was_spliced_out_of_a_socket_is_counted_past(machine):
    """By kprobes: of a body, which the next request comes behind."""
    server = End(machine)
    server.reads(b"POST /1 HTTP/1.1\r\nContent-Length: 5000\r\n\r\n" + b"x" * 100)
    server.moves_unseen(taken=b"x" * 4900)
    server.writes(response(201))
    server.reads(b"POST /2 HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
    server.writes(response(202))
    assert all_exchanges(machine) == ({("/1", 201): 1, ("/2", 202): 1}, 0)


def test_a_number_that_says_something_else_is_not_believed(machine):
    """kTLS: what goes out is more than what was written. Nothing is missing there."""
    end = Preempted(machine)
    converse(end, False, None, range(1, 4), growth=22)
    end.reads(request("/4") + request("/5"))
    for number in (4, 5):
        answer = response(200 + number)
        end.writes(answer, len(answer) + 22)
    assert all_exchanges(machine) == ({(f"/{n}", 200 + n): 1 for n in range(1, 6)}, 0)
