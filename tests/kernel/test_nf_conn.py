"""What programs in the connection tracker tell of real nftables rules, beside what ctnetlink dumps."""

import os
import socket
import subprocess
import time
from collections import defaultdict
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from collector import nf_conn
from collector.ctnetlink import Asker, is_loaded
from collector.enrich.translations import Means, Translations
from collector.nf_conn import NfConn
from guessers.nfnetlink import Netfilter, message
from kcompat.bpf import compile_cached
from kcompat.fields import CONNTRACK
from kcompat.load import Loaded
from kcompat.offsets import Offsets
from tests.kernel import signs, wires
from tests.kernel.conftest import version_code, wires_and

V4, V6 = "10.209.0.{}", "fd09::{}"
RULES = """
table {family} kcompat {{
  chain out {{
    type nat hook output priority -100;
    {family} daddr {virtual} tcp dport 80 dnat to {real}:8080
    {family} daddr {virtual} udp dport 53 dnat to {real}:5300
  }}
  chain post {{
    type nat hook postrouting priority 100;
    {family} daddr {masked} snat to {mask}
  }}
  chain seen {{
    type nat hook input priority 100;
  }}
}}
"""
NETFILTER, CT_DELETE, REQUEST_ACK = 12, 0x102, 5
EVENTS = Path("/proc/sys/net/netfilter/nf_conntrack_events")
PATIENCE_S = 30
FALLBACK = {"kprobe": tuple(h for h in nf_conn.HOOKS["kprobe"] if "__nf_conntrack_hash_insert" not in h.symbols)}

pytestmark = pytest.mark.skipif(not signs.KPROBES, reason="this kernel has no kprobes")


class Place:
    """A namespace whose loopback has our addresses, and whose rules translate what is sent to some of them."""

    def __init__(self, end):
        self.end, self.open = end, ExitStack()
        self.families = [V4, V6] if signs.IPV6 else [V4]
        wires.ip("-n", end.name, "address", "add", f"{V4.format(1)}/24", "dev", "lo")
        if signs.IPV6:
            for host in (1, 2, 80, 90, 91):
                wires.ip("-n", end.name, "address", "add", f"{V6.format(host)}/128", "dev", "lo", "nodad")
        for family in self.families:
            self._translate("ip" if family is V4 else "ip6", family)

    def _translate(self, family, hosts):
        real = hosts.format(2)
        text = RULES.format(family=family, virtual=hosts.format(80), real=real if family == "ip" else f"[{real}]",
                            masked=hosts.format(90), mask=hosts.format(91))
        done = subprocess.run(self.end.command("nft", "-f", "-"), input=text, capture_output=True, text=True,
                              timeout=PATIENCE_S, check=False)
        if done.returncode:
            pytest.skip(f"no translation here: {done.stderr.splitlines()[0]}")

    def talk(self):
        """A connection of each protocol and family to a translated address, one straight there, one masked."""
        self.end.run(lambda: [self._talk(hosts) for hosts in self.families])

    def _talk(self, hosts):
        keep, family = self.open.enter_context, socket.AF_INET if hosts is V4 else socket.AF_INET6
        for host, port, real, real_port in ((80, 80, 2, 8080), (2, 8080, 2, 8080), (90, 9000, 90, 9000)):
            with socket.create_server((hosts.format(real), real_port), family=family) as listening:
                client = keep(socket.create_connection((hosts.format(host), port), PATIENCE_S,
                                                       (hosts.format(1), 0)))
                server = keep(listening.accept()[0])
                client.send(b"q")
                assert server.recv(9) == b"q"
        with socket.socket(family, socket.SOCK_DGRAM) as server:
            server.bind((hosts.format(2), 5300))
            server.settimeout(PATIENCE_S)
            client = keep(socket.socket(family, socket.SOCK_DGRAM))
            client.bind((hosts.format(1), 0))
            client.sendto(b"q", (hosts.format(80), 53))
            server.sendto(b"a", server.recvfrom(9)[1])
            client.settimeout(PATIENCE_S)
            client.recv(9)

    def send(self, ports):
        """A datagram from each of these ports: nobody answers."""
        def burst():
            for port in ports:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.bind((V4.format(1), port))
                    client.sendto(b"q", (V4.format(80), 53))
        self.end.run(burst)

    def tracked(self):
        """The translated connections that ctnetlink tells of when it is asked."""
        def dump():
            with closing(Asker()) as asker:
                return set(asker.dump())
        return self.end.run(dump)

    def forget(self):
        """Has the tracker drop all of them."""
        def flush():
            with Netfilter() as netfilter:
                for family in (socket.AF_INET, socket.AF_INET6):
                    netfilter._ask(message(CT_DELETE, REQUEST_ACK, family, b""))
        self.end.run(flush)

    def keep_events(self, wanted):
        self.end.run(lambda: EVENTS.write_text(f"{wanted:d}"))


class Heard:
    """What was told, by namespace."""

    def __init__(self):
        self.new, self.ended = defaultdict(list), defaultdict(list)

    def __call__(self, netns, ended, one):
        (self.ended if ended else self.new)[netns].append(one)


@pytest.fixture
def place():
    """Makes one when it is called."""
    wires_and("ip", "nft")
    with ExitStack() as stack:
        def make(label):
            made = Place(stack.enter_context(wires.namespace(label)))
            stack.callback(made.open.close)
            return made
        yield make


@pytest.fixture(scope="module")
def offsets(oracle):
    if not all(oracle[field].offset is not None for field in nf_conn.wanted() if field.struct == "nf_conn"):
        pytest.skip("this kernel's judge says nothing of nf_conn")
    return oracle


def attached(offsets, heard, hooks=nf_conn.HOOKS):
    return closing(NfConn(offsets, version_code(), ("kprobe",), heard, hooks))


@pytest.mark.parametrize("hooks", [nf_conn.HOOKS, pytest.param(FALLBACK, marks=pytest.mark.thorough)],
                         ids=["insert", "confirm"])
def test_what_is_told_is_what_the_tracker_says(place, offsets, hooks):
    heard, before = Heard(), place("before")
    before.talk()
    with attached(offsets, heard, hooks) as source:
        source.rescan()
        assert set(heard.new[before.end.number]) == before.tracked() != set()
        before.talk()
        later = place("later")
        later.talk()
        source.drain()
        for one in (before, later):
            said = heard.new[one.end.number]
            assert set(said) == one.tracked()
            assert len(said) == len(set(said)) == (2 if one is before else 1) * 2 * len(one.families)
            assert {t.protocol for t in said} == {6, 17}
        assert not heard.ended[later.end.number]
        later.forget()
        source.drain()
        assert set(heard.ended[later.end.number]) == set(heard.new[later.end.number])
        assert (source.lost, source.refused) == (0, 0)


def test_it_is_told_where_the_tracker_keeps_its_events_to_itself(place, offsets):
    heard, quiet = Heard(), place("quiet")
    if not EVENTS.exists():
        pytest.skip("this tracker has no events")
    quiet.keep_events(False)
    with attached(offsets, heard) as source:
        quiet.talk()
        source.drain()
        assert set(heard.new[quiet.end.number]) == quiet.tracked() != set()


def test_what_found_a_ring_full_is_counted_and_asked_for(place, offsets, monkeypatch):
    for name in ("_RING", "_SMALLEST_RING"):
        monkeypatch.setattr(nf_conn, name, 4096)
    heard, busy = Heard(), place("busy")
    with attached(offsets, heard) as source:
        source.rescan()
        busy.send(range(20_000, 20_200))
        source._dump_at_s = 0
        source.settle()
        assert set(heard.new[busy.end.number]) == busy.tracked()
        assert len(busy.tracked()) == 200
        told = len(heard.new[busy.end.number]) - 200
        # That some were lost the kernel says with the next on that processor that is not.
        ports = iter(range(20_200, 30_000))
        until(lambda: busy.send([next(ports)]) or source.drain() or source.lost)
        assert source.lost == 200 - told


@pytest.fixture
def translations(offsets):
    with closing(Translations(Means(offsets, version_code()))) as made:
        yield made


def real_end(translations, netns, one, **how):
    return translations.find(netns, "tcp" if one.protocol == 6 else "udp", *one[1:5], **how)


def test_they_are_found_at_once_and_no_netlink_socket_stays_open(place, translations):
    there = place("there")
    assert netfilter_sockets() == 0
    assert translations.status().how == NfConn.how
    there.talk()
    (one, *others) = there.tracked()
    assert real_end(translations, there.end.number, one, fresh=True) == one[5:]
    translations.settle()
    assert [real_end(translations, there.end.number, other) for other in others] == [other[5:] for other in others]
    status = translations.status()
    assert (status.tracking, status.why, status.lost) == (True, "", {"nat events": 0, "nat entries": 0})
    assert {"kprobe__insert", "kprobe__destroy"} <= {h.program for h in status.hooks if h.state == "attached"}
    assert netfilter_sockets() == 0


def test_where_programs_cannot_be_it_says_why(place, offsets):
    place("tracked")
    without = Offsets(o for o in offsets.values() if o.field.module != CONNTRACK)
    for means, why in ((Means(offsets, version_code(), ("rawtp",)), "it goes by kprobes alone"),
                       (Means(without, version_code()), "no known offset for")):
        with closing(Translations(means)) as made:
            status = made.status()
            assert (status.how, status.hooks) == ("ctnetlink", ())
            assert why in status.why
            assert status.namespaces > 0 and netfilter_sockets() == status.namespaces
            assert not made.lacks_offsets  # asked for with the tracker there: not again


def test_a_tracker_that_is_loaded_later(place, offsets):
    if is_loaded():
        pytest.skip("it is loaded already")
    with closing(Translations(Means(Offsets(), version_code()))) as made:
        assert (made.status().tracking, made.status().how) == (False, "ctnetlink")
        there = place("later")
        until(lambda: made.lacks_offsets)
        made.adopt(Means(offsets, version_code()))
        until(lambda: made.status().how == NfConn.how)
        there.talk()
        made.settle()
        assert [real_end(made, there.end.number, one) for one in there.tracked()] == [
            one[5:] for one in there.tracked()] != []


def until(happens):
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def netfilter_sockets():
    """How many netlink sockets to netfilter this process has open, in whichever namespace."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        try:
            if path.readlink().name.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(path.name))) as one:
                    count += (one.family, one.getsockopt(socket.SOL_SOCKET, 38)) == (socket.AF_NETLINK, NETFILTER)
        except OSError:
            continue
    return count


def test_every_program_loads(offsets):
    with Loaded(compile_cached(nf_conn.render(offsets))[0], version_code()) as loaded:
        for program in ("kprobe__insert", "kprobe__confirm", "kprobe__destroy"):
            loaded.load(program)
