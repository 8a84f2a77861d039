"""dnsflow without packets: namespaces that come and go, what is learnt in them, and what goes wrong meanwhile."""

import errno
import os
import time
from pathlib import Path

import pytest

from collector.config import Options
from collector.dataset import Setup
from collector.datasets import dnsflow
from collector.datasets.dnsflow import Dnsflow
from collector.packet_ring import Packet
from kcompat.errors import Unsupported
from kcompat.offsets import Offsets
from tests.collector import wire

HERE, SERVER, OTHER, FOUND = "10.0.0.1", "10.0.0.53", "172.17.0.2", "10.9.9.9"


class Namespace:
    """One that says what it was told to say, and whose own address is HERE."""

    def __init__(self):
        self.ring, self.routes = self, self
        self.waiting, self.is_closed = [], False
        self._file = os.eventfd(0)

    def fileno(self):
        return self._file

    def packets(self):
        taken, self.waiting = self.waiting, []
        return taken

    def count_losses(self):
        return 0

    def is_local(self, address):
        return address == wire.packed(HERE)

    def close(self):
        self.is_closed = True
        os.close(self._file)


class Dataset(Dnsflow):
    """Looks for namespaces when it begins, then only when it is asked to: `there`, each number with what is opened."""

    def __init__(self, there, setup):
        self.there = there
        super().__init__(setup)

    def _open(self, door, home):
        made = self.there[int(door.name)]
        if isinstance(made, OSError):
            raise made
        return made

    def look(self):
        self._look(None)


@pytest.fixture
def running(monkeypatch):
    """running(**namespaces) -> a Dataset, with the domains it was given."""
    made = []

    def start(**namespaces):
        there = {int(name.removeprefix("net")): one for name, one in namespaces.items()}
        monkeypatch.setattr(dnsflow, "doors", lambda: {netns: Path(f"/{netns}") for netns in there})
        made.append(Dataset(there, Setup(Options("box", loopback=True), Offsets(), 0)))
        return made[-1]

    monkeypatch.setattr(dnsflow, "require", lambda *_: None)
    monkeypatch.setattr(dnsflow, "_RESCAN_S", 3600.0)
    monkeypatch.setattr(dnsflow, "_SETTLE_S", 0.0)
    yield start
    for one in made:
        one.close()


def packet(source, destination, ports, payload):
    return Packet(time.time_ns(), wire.ipv4(source, destination, wire.UDP, wire.udp(*ports, payload)), True)


def asked(client, number=1, server=SERVER):
    return packet(client, server, (4000, 53), wire.query(number, "x.org"))


def answered(client, number=1, server=SERVER):
    found = wire.record(b"\xc0\x0c", 1, wire.packed(FOUND)[12:])
    return packet(server, client, (53, 4000), wire.response(number, "x.org", answers=[found]))


@pytest.mark.parametrize(("packets", "name"), [
    ([asked(HERE), answered(HERE)], "x.org"),
    ([asked(HERE, server=HERE), answered(HERE, server=HERE)], "x.org"),
    ([asked(OTHER), answered(OTHER)], None),
    ([asked(OTHER, server=HERE), answered(OTHER, server=HERE)], None),
    ([asked(OTHER), asked(HERE), answered(HERE), answered(OTHER)], None),
], ids=["own", "own server", "passing", "another's of our server", "masqueraded"])
def test_a_name_is_learnt_where_it_was_asked_for(running, packets, name):
    namespace = Namespace()
    flows = running(net7=namespace)
    namespace.waiting = packets
    flows.flush(1)

    assert flows._setup.domains.name(7, wire.packed(FOUND)) == name


def test_a_look_that_cannot_be_now_is_said_once_and_those_there_are_stay(running, monkeypatch, caplog):
    namespace = Namespace()
    flows, seen = running(net7=namespace), dnsflow.doors

    def full():
        raise OSError(errno.EMFILE, "Too many open files")

    for _ in range(2):
        monkeypatch.setattr(dnsflow, "doors", full)
        flows.look()
        flows.look()
        monkeypatch.setattr(dnsflow, "doors", seen)
        flows.look()
    namespace.waiting = [asked(HERE), answered(HERE)]

    assert [r.fields["count"] for r in flows.flush(1)] == [1]
    assert [r.message for r in caplog.records].count(
        "dnsflow looks for network namespaces later: Too many open files") == 2


def test_what_ended_the_thread_ends_the_dataset(running):
    class Broken(Namespace):
        def packets(self):
            raise ValueError("no packet")

    flows = running(net7=Broken())
    flows._thread.join(60)
    with pytest.raises(Unsupported, match="dnsflow is off: no packet"):
        flows.flush(1)


def test_a_namespace_that_cannot_be_waited_for_is_not_kept(running):
    unheard = Namespace()
    os.close(unheard._file)
    unheard._file = os.open(os.devnull, os.O_RDONLY)  # no epoll takes it
    flows = running(net6=unheard, net7=Namespace())

    assert unheard.is_closed and list(flows._namespaces) == [7]


def test_queries_that_wait_when_their_namespace_goes_were_in_vain(running):
    namespace = Namespace()
    flows = running(net6=Namespace(), net7=namespace)
    namespace.waiting = [asked(HERE, 1), asked(HERE, 2), answered(HERE, 2), asked(HERE, 3)]
    del flows.there[7]
    flows.look()

    assert namespace.is_closed and not len(flows._exchanges)
    assert {r.fields["rcode"]: r.fields["count"] for r in flows.flush(1)} == {-1: 2, 0: 1}


def test_a_namespace_that_there_was_no_room_for_is_watched_when_there_is(running, monkeypatch, caplog):
    monkeypatch.setattr(dnsflow, "_MAX_NAMESPACES", 1)
    flows = running(net6=Namespace(), net7=Namespace())
    flows.look()
    assert list(flows._namespaces) == [6] and len(flows.hooks) == 2

    del flows.there[6]
    flows.look()
    assert list(flows._namespaces) == [7] and len(flows.hooks) == 1
    assert caplog.text.count("sees nothing of network namespace 7") == 1


@pytest.mark.parametrize(("number", "comes"), [(errno.ENOMEM, True), (errno.EMFILE, True), (errno.EPERM, False)])
def test_a_reason_that_passes_is_not_remembered(running, caplog, number, comes):
    flows = running(net6=Namespace(), net7=OSError(number, "no"))
    flows.look()
    late = flows.there[7] = Namespace()
    flows.look()
    if not comes:
        late.close()

    assert (7 in flows._namespaces) == comes
    assert caplog.text.count("sees nothing of network namespace 7") == 1


def test_names_are_told_until_another_namespace_has_their_number(running):
    namespace = Namespace()
    flows = running(net6=Namespace(), net7=namespace)
    namespace.waiting = [asked(HERE), answered(HERE)]
    del flows.there[7]
    flows.look()
    assert flows._setup.domains.name(7, wire.packed(FOUND)) == "x.org"

    flows.there[7] = Namespace()
    flows.look()
    assert flows._setup.domains.name(7, wire.packed(FOUND)) is None
