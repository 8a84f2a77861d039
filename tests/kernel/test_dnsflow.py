"""dnsflow on real packets, in namespaces of our own: counts exact, latencies those that were planted."""

import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from collector import dns_exchanges, pipeline
from collector.config import Options
from collector.dataset import Setup
from collector.datasets.dnsflow import Dnsflow
from kcompat.offsets import Offsets
from tests.collector import wire as bytes_of
from tests.kernel import signs, wires

OPTIONS = Options("box", loopback=True)
SLEPT_S = 0.05
A, B = "10.203.0.1", "10.203.0.2"
A6, B6 = "fd00:203::1", "fd00:203::2"


@pytest.fixture(scope="module", autouse=True)
def namespaces():
    if not signs.NET_NS:
        pytest.skip("this kernel has no network namespaces")


@pytest.fixture(scope="module")
def ends(namespaces):
    pairs = [(f"{A}/24", f"{B}/24")] + ([(f"{A6}/64", f"{B6}/64")] if signs.IPV6 else [])
    with wires.wire(*pairs) as made:
        yield made


@pytest.fixture
def short_timeout(monkeypatch):
    monkeypatch.setattr(dns_exchanges, "TIMEOUT_NS", 3 * 10**9)


@contextmanager
def dnsflow(*ends, options=OPTIONS):
    setup = Setup(options, Offsets(), 0)
    running = Dnsflow(setup, {end.number for end in ends})
    with closing(running):
        running.domains = setup.domains
        yield running


def ask(address, *wanted, family=socket.AF_INET, timeout_s=5.0, options=(), port=0):
    """Sends queries from one socket, each after the answer to the one before; what came back."""
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        for option in options:
            client.setsockopt(*option)
        client.settimeout(timeout_s)
        if port:
            client.bind(("", port))
        client.connect((address, 53))
        replies = []
        for number, (text, kind) in enumerate(wanted):
            client.send(bytes_of.query(number, text, kind))
            try:
                replies.append(client.recv(65_535))
            except TimeoutError:
                replies.append(None)
        return replies


def answer(query):
    """By the first label: its number is the rcode; `slow` sleeps first, `mute` says nothing, `name` is an address."""
    label = query[13:13 + query[12]].decode()
    if label == "mute":
        return None
    if label == "slow":
        time.sleep(SLEPT_S)
    rcode = int(label[1:]) if label.startswith("r") else 0
    data = [bytes_of.record(b"\xc0\x0c", 1, socket.inet_aton(B))] if label == "name" else []
    header = struct.pack("!6H", int.from_bytes(query[:2]), 0x8180 | rcode & 15, 1, len(data), 0, int(rcode > 15))
    end = query.index(b"\0", 12) + 5
    return header + query[12:end] + b"".join(data) + (bytes_of.opt(rcode >> 4) if rcode > 15 else b"")


def counts(records, **tags):
    found = Counter()
    for record in records:
        if all(record.tags[name] == value for name, value in tags.items()):
            found[record.fields["rcode"]] += record.fields["count"]
    return found


def one(records, **tags):
    (record,) = [r for r in records if all(r.tags[name] == value for name, value in tags.items())]
    return record


def test_loopback_shows_each_query_once(ends):
    end = ends[0]
    families = [(socket.AF_INET, "127.0.0.1")] + ([(socket.AF_INET6, "::1")] if signs.IPV6 else [])

    def traffic():
        for family, address in families:
            with wires.answering(answer, family, address):
                ask(address, *[("r0.test", 1)] * 5, ("r3.test", 1), ("r5.test", 28), ("r16.test", 1), family=family)

    with dnsflow(end) as running:
        end.run(traffic)
        records = running.flush(1)

    for _, address in families:
        assert counts(records, src_ip=address) == {0: 5, 3: 1, 5: 1, 16: 1}
    assert {r.tags["direction"] for r in records} == {"incoming"}
    assert not any(running.losses.values())


@pytest.mark.thorough
def test_of_many_clients_one_is_seen_and_none_of_the_others_waits(ends):
    def traffic():
        with wires.answering(answer, socket.AF_INET, "127.0.0.1"):
            for port in range(41000, 41032):
                ask("127.0.0.1", ("r0.test", 1), port=port)

    with dnsflow(ends[0]) as running:
        shares = []
        for one_of in (8, 1):
            assert running.sample(one_of)
            ends[0].run(traffic)
            shares.append(counts(running.flush(1)))
    assert shares == [{0: 4}, {0: 32}]


def test_both_ends_of_a_wire_see_their_side(ends):
    families = [(socket.AF_INET, A, B)] + ([(socket.AF_INET6, A6, B6)] if signs.IPV6 else [])

    def traffic(family, address):
        return ask(address, *[("r0.test", 1)] * 7, ("r2.test", 1), family=family)

    with dnsflow(*ends) as running, ExitStack() as stack:
        for family, _, server in families:
            stack.enter_context(in_namespace(ends[1], partial(wires.answering, answer, family, server)))
            ends[0].run(partial(traffic, family, server))
        records = running.flush(1)

    for _, client, server in families:
        out, into = (one([r for r in records if r.fields["rcode"] == 0], direction=direction, src_ip=source)
                     for direction, source in (("outgoing", client), ("incoming", server)))
        assert counts(records, src_ip=client) == counts(records, src_ip=server) == {0: 7, 2: 1}
        assert (out.tags["dst_ip"], out.tags["src_port"], out.tags["dst_port"]) == (server, "*", "53")
        assert (into.tags["dst_ip"], into.tags["src_port"], into.tags["dst_port"]) == (client, "53", "*")
        # The server's side of the wire is not slower than the client's.
        assert into.fields["latency"] <= out.fields["latency"]


@contextmanager
def in_namespace(end, manager):
    """The context manager entered in the namespace: its sockets and threads stay there."""
    inside = end.run(lambda: _entered(manager()))
    try:
        yield inside
    finally:
        inside.__exit__(None, None, None)


def _entered(manager):
    manager.__enter__()
    return manager


def test_what_sleeps_50_ms_reads_50_ms(ends):
    waited_s = []

    def traffic():
        with wires.answering(answer):
            for _ in range(3):
                begun_s = time.monotonic()
                ask("127.0.0.1", ("slow.test", 1))
                waited_s.append(time.monotonic() - begun_s)

    with dnsflow(ends[0]) as running:
        ends[0].run(traffic)
        fields = one(running.flush(1)).fields

    assert fields["count"] == 3
    # Who asked has waited longer than the packets were on their way, by however slow this machine is.
    assert SLEPT_S <= fields["latency"] / 1e9 <= sum(waited_s) / 3
    assert SLEPT_S <= fields["latency_max"] / 1e9 <= max(waited_s)


@pytest.mark.thorough
def test_no_answer_is_told_when_its_time_is_over(ends, short_timeout):
    def traffic():
        with wires.answering(answer):
            ask("127.0.0.1", ("mute.test", 1), ("r0.test", 1), timeout_s=0.1)

    with dnsflow(ends[0]) as running:
        ends[0].run(traffic)
        assert counts(running.flush(1)) == {0: 1}
        time.sleep(3)
        (record,) = running.flush(2)

    assert record.fields == {"rcode": -1, "latency": 0, "latency_max": 0, "count": 1}


def test_messages_over_tcp_in_single_bytes_and_two_at_once(ends):
    queries = b"".join(len(q).to_bytes(2) + q for q in (bytes_of.query(1, "r0.test"), bytes_of.query(2, "r3.test")))
    replies = b"".join(len(r).to_bytes(2) + r for r in map(answer, (bytes_of.query(2, "r3.test"),
                                                                     bytes_of.query(1, "r0.test"))))

    def traffic():
        with socket.create_server(("127.0.0.1", 53)) as server, socket.create_connection(("127.0.0.1", 53)) as client:
            served, _ = server.accept()
            with served:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in queries:
                    client.send(bytes([byte]))
                served.recv(len(queries), socket.MSG_WAITALL)
                served.sendall(replies)
                client.recv(len(replies), socket.MSG_WAITALL)

    with dnsflow(ends[0]) as running:
        ends[0].run(traffic)
        records = running.flush(1)

    assert counts(records, transport="tcp") == {0: 1, 3: 1}


@pytest.mark.skipif(not signs.IPV6, reason="this kernel has no IPv6")
def test_extension_headers_hide_nothing(ends):
    # Destination options of eight bytes, padding alone, which the kernel puts between its header and UDP's.
    padding = (socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, b"\0\0\1\4\0\0\0\0")

    with dnsflow(*ends) as running, in_namespace(ends[1], lambda: wires.answering(answer, socket.AF_INET6, B6)):
        ends[0].run(lambda: ask(B6, ("r0.test", 1), ("r3.test", 1), family=socket.AF_INET6, options=[padding]))
        records = running.flush(1)

    assert counts(records, direction="outgoing") == counts(records, direction="incoming") == {0: 1, 3: 1}


@pytest.mark.parametrize("tags", [b"\x81\x00\x00\x0a", b"\x88\xa8\x00\x0b\x81\x00\x60\x0a"], ids=["802.1Q", "802.1ad"])
def test_tagged_frames_are_seen_on_both_ends(ends, tags):
    """Whole frames, for want of a VLAN device on every kernel: who receives them takes one tag off, who sends none."""
    question = bytes_of.query(9, "r3.test")
    there = bytes_of.ipv4(A, B, 17, bytes_of.udp(5000, 53, question))
    back = bytes_of.ipv4(B, A, 17, bytes_of.udp(53, 5000, answer(question)))

    def send(packet):
        wires.raw_frame("wire", b"\xff" * 6 + b"\2" + bytes(5) + tags + b"\x08\x00" + packet)

    with dnsflow(*ends) as running:
        ends[0].run(lambda: send(there))
        time.sleep(0.01)
        ends[1].run(lambda: send(back))
        records = running.flush(1)

    assert counts(records, direction="incoming") == counts(records, direction="outgoing") == {3: 1}


@pytest.mark.thorough
def test_a_bridge_shows_each_query_once(ends):
    """In the namespace of the bridge a packet passes two or three interfaces, and ends in neither of its sockets."""
    with wires.namespace("bridge") as middle, wires.namespace("left") as left:
        try:
            wires.ip("-n", middle.name, "link", "add", "bridge", "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this kernel has no bridges: {error.stderr.decode().strip()}")
        wires.ip("-n", middle.name, "link", "set", "bridge", "up")
        wires.ip("-n", middle.name, "address", "add", "10.204.0.254/24", "dev", "bridge")
        wires.ip("-n", left.name, "link", "add", "wire", "type", "veth", "peer", "name", "left", "netns", middle.name)
        wires.ip("-n", middle.name, "link", "set", "left", "master", "bridge", "up")
        wires.ip("-n", left.name, "address", "add", "10.204.0.1/24", "dev", "wire")
        wires.ip("-n", left.name, "link", "set", "wire", "up")
        with dnsflow(left, middle) as running, in_namespace(
                middle, lambda: wires.answering(answer, address="10.204.0.254")):
            left.run(lambda: ask("10.204.0.254", *[("r0.test", 1)] * 6))
            records = running.flush(1)

    assert counts(records, direction="outgoing") == counts(records, direction="incoming") == {0: 6}


MASQUERADE = """
table ip kcompat {
  chain post {
    type nat hook postrouting priority 100
    oifname "outside" masquerade
  }
  chain back {
    type nat hook prerouting priority -100
  }
}
"""


def test_a_query_that_gets_our_address_on_its_way_is_of_where_it_began(ends, monkeypatch):
    """A container, its host with a real masquerade, and a server beyond: what the host asks itself is the host's."""
    # An emulated machine is slow.
    monkeypatch.setattr(dns_exchanges, "_TRANSLATED_NS", 10**9)
    with wires.namespace("container") as container, wires.namespace("host") as host:
        for end, name, there, own, other in ((container, "inside", "wire", "10.205.0.254", "10.205.0.1"),
                                             (ends[1], "outside", "beyond", "10.206.0.1", "10.206.0.2")):
            wires.ip("-n", end.name, "link", "add", there, "type", "veth", "peer", "name", name, "netns", host.name)
            wires.ip("-n", host.name, "address", "add", f"{own}/24", "dev", name)
            wires.ip("-n", host.name, "link", "set", name, "up")
            wires.ip("-n", end.name, "address", "add", f"{other}/24", "dev", there)
            wires.ip("-n", end.name, "link", "set", there, "up")
        wires.ip("-n", container.name, "route", "add", "default", "via", "10.205.0.254")
        subprocess.run(host.command("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"), check=True, timeout=20)
        done = subprocess.run(host.command("nft", "-f", "-"), input=MASQUERADE, capture_output=True, text=True,
                              timeout=20, check=False) if shutil.which("nft") else None
        if not done or done.returncode:
            pytest.skip(f"no translation here: {done.stderr.splitlines()[0] if done else 'no nft'}")
        with dnsflow(container, host) as running, in_namespace(
                ends[1], lambda: wires.answering(answer, address="10.206.0.2")):
            for end, times in ((container, 6), (host, 2)):
                assert None not in end.run(partial(ask, "10.206.0.2", *[("r0.test", 1)] * times))
            records = running.flush(1)

    assert {r.tags["src_ip"]: r.fields["count"] for r in records} == {"10.205.0.1": 6, "10.206.0.1": 2}
    assert running.left_out["forwarded"] == 12


def test_what_only_passes_through_is_its_ends_business(ends):
    with dnsflow(ends[0]) as running:
        ends[0].run(lambda: [wires.raw_frame("wire", wires.ethernet(0x0800, bytes_of.ipv4(
            *pair, 17, bytes_of.udp(*ports, payload)))) for pair, ports, payload in (
                (("10.9.0.1", "10.9.0.2"), (5000, 53), bytes_of.query(1, "r0.test")),
                (("10.9.0.2", "10.9.0.1"), (53, 5000), answer(bytes_of.query(1, "r0.test"))))])
        assert running.flush(1) == []

    assert running.left_out["forwarded"] == 1


def test_names_and_types_are_told_when_asked_for(ends):
    def traffic():
        with wires.answering(answer):
            ask("127.0.0.1", ("r0.Example.TEST", 1), ("r0.example.test", 28))

    with dnsflow(ends[0], options=Options("box", loopback=True, dns_queries=True)) as running:
        ends[0].run(traffic)
        records = running.flush(1)

    assert {(r.fields["query_name"], r.fields["query_type"]) for r in records} == {
        ("r0.example.test", "A"), ("r0.example.test", "AAAA")}


def test_what_was_answered_is_a_name_for_its_address(ends):
    def traffic():
        with wires.answering(answer):
            ask("127.0.0.1", ("name.example.test", 1))

    with dnsflow(ends[0]) as running:
        ends[0].run(traffic)
        running.flush(1)

    assert running.domains.name(ends[0].number, bytes_of.packed(B)) == "name.example.test"
    assert running.domains.name(ends[1].number, bytes_of.packed(B)) is None


@pytest.mark.thorough
def test_netflow_tells_the_name_of_an_address_that_was_answered(ends, oracle):
    """Both datasets through the pipeline, as a user starts them."""
    records, stop, ready = Records(), threading.Event(), threading.Event()

    def traffic():
        ask(B, ("name.example.test", 1))
        with socket.create_connection((B, 8080), timeout=10) as client:
            client.sendall(b"x" * 777)
            client.recv(1)

    def serve(server):
        with server.accept()[0] as served:
            served.recv(777, socket.MSG_WAITALL)
            served.send(b"x")

    collecting = threading.Thread(target=pipeline.collect, args=(
        replace(OPTIONS, datasets=("dnsflow", "netflow")), oracle, records), kwargs={"stop": stop, "ready": ready})
    collecting.start()
    try:
        assert ready.wait(60)
        with in_namespace(ends[1], lambda: wires.answering(answer, address=B)), ends[1].run(
                lambda: socket.create_server((B, 8080))) as server:
            server_thread = threading.Thread(target=serve, args=(server,))
            server_thread.start()
            ends[0].run(traffic)
            server_thread.join(10)
        time.sleep(0.3)
    finally:
        stop.set()
        collecting.join()

    (flow,) = [r for r in records if r.measurement == "netflow" and r.tags["direction"] == "outgoing"
               and (r.tags["src_ip"], r.tags["dst_ip"], r.tags["dst_port"]) == (A, B, "8080")]
    assert flow.tags["dst_domain"] == "name.example.test" and flow.fields["bytes_written"] == 777
    assert counts([r for r in records if r.measurement == "dnsflow"], src_ip=A)[0] >= 1


class Records(list):
    """A sink that keeps them."""

    write = list.extend


@pytest.mark.thorough
def test_namespaces_are_joined_as_they_come_and_left_as_they_go():
    running = Dnsflow(Setup(OPTIONS, Offsets(), 0))
    with closing(running):
        with wires.namespace("late") as late:
            wait_until(lambda: late.number in running._namespaces)

            def traffic():
                with wires.answering(answer):
                    ask("127.0.0.1", ("r5.test", 1))

            late.run(traffic)
            assert counts(running.flush(1))[5] >= 1
        wait_until(lambda: late.number not in running._namespaces)


def resident_of_files_mb():
    told = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
    if not told:
        pytest.skip("the kernel does not tell them apart from other memory: it does from 4.5 on")
    return int(told[0].split()[1]) / 1024


def test_rings_take_16_mb_of_memory_and_give_it_back(ends):
    before = resident_of_files_mb()
    with dnsflow(*ends):
        assert resident_of_files_mb() - before < 18
    assert resident_of_files_mb() - before < 2


def wait_until(holds, patience_s=20):
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.thorough
def test_what_finds_the_ring_full_is_counted(ends):
    sent = 60_000
    query = bytes_of.query(1, "r0.test") + bytes(400)

    def traffic():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for number in range(sent):
                client.sendto(number.to_bytes(2) + query[2:], ("127.0.0.1", 53))

    with dnsflow(ends[0]) as running:
        with running._lock:  # as if this machine had no time for us
            ends[0].run(traffic)
        given_up = counts(running.flush(1))

    assert running.losses["packets"] > 0 and not given_up - Counter({-1: sent})
    # Each was a query of its own: waiting now, given up on a slow machine, without room, or its packet was lost.
    waiting = len(running._exchanges) + given_up[-1] + running.losses["dns queries"]
    assert waiting + running.losses["packets"] == sent
