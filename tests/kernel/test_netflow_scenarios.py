"""Netflow's points beside what other authorities say of the same traffic: TCP_INFO, ss, the connection tracker.

The traffic is made by a process of its own in a network namespace of its own (`netflow_traffic.py`).
"""

import json
import os
import random
import re
import resource
import select
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from collector.config import Options
from collector.dataset import Setup
from collector.datasets.netflow import NAME
from collector.datasets.netflow_running import NetflowRunning
from collector.nf_conn import NfConn
from collector.trackers import Trackers
from kcompat.errors import Unsupported
from kcompat.fields import CONNTRACK
from kcompat.kernel import Kernel
from kcompat.offsets import Offsets
from kcompat.version import running_version_code
from tests.kernel import signs
from tests.kernel.test_netflow import NOT_OURS, backends_this_kernel_has

OPTIONS = Options("box", interval_s=1, containers=True)
TRAFFIC = Path(__file__).with_name("netflow_traffic.py")
PATIENCE_S = 60
# Every tag that a point has with nothing of Kubernetes and no name known.
TAGS = {"host", "source", "direction", "src_ip", "src_port", "src_ip_type", "dst_ip", "dst_port", "dst_ip_type",
        "dst_nat_ip", "dst_nat_port", "pid", "process_name", "transport", "family", "container_id", "cgroup"}
TCP = {"bytes_read", "bytes_written", "retransmits", "rtt", "rtt_var", "tcp_closed", "tcp_established"}

pytestmark = pytest.mark.skipif(not signs.NET_NS, reason="without network namespaces no traffic is nobody else's")


def start(offsets, options=OPTIONS):
    try:
        return NetflowRunning(Setup(options, offsets, running_version_code(Kernel.running().release)))
    except Unsupported as error:
        if backends_this_kernel_has():
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared(oracle):
    with closing(start(oracle)) as running:
        yield running


@pytest.fixture(params=["nf_conn", pytest.param("ctnetlink", marks=pytest.mark.thorough)])
def translating(request, oracle):
    """Each source of translations: programs in the tracker where they can be, ctnetlink where nf_conn is not known."""
    known = oracle if request.param == "nf_conn" else Offsets(
        o for o in oracle.values() if o.field.module != CONNTRACK)
    with closing(start(known)) as running:
        yield running
        assert set(running.losses.items()) >= {("nat events", 0), ("nat entries", 0)}
        how = running._setup.translations.status().how
        assert how == ("ctnetlink" if request.param == "ctnetlink" or not signs.KPROBES else NfConn.how)


@pytest.fixture
def netflow(shared):
    """Nothing of ours may be lost."""
    yield shared
    assert {reason: count for reason, count in shared.losses.items() if count and reason not in NOT_OURS} == {}


class Traffic:
    """A running scenario: `step` is what it says of itself so far."""

    def __init__(self, process, net):
        self.net, self.process = net, process

    def step(self):
        if self.process.poll() is None and self._begun:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        self._begun = True
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        line = self.process.stdout.readline() if ready else ""
        assert line, f"the traffic ended with {self.process.wait(10)}"
        told = json.loads(line)
        if "skip" in told:
            pytest.skip(told["skip"].splitlines()[0])
        return told

    _begun = False

    def own(self, records):
        prefix = (f"10.{self.net}.", f"fd{self.net:02x}:")
        return [r for r in records if r.tags["src_ip"].startswith(prefix)]


@contextmanager
def traffic(name, *before):
    net = random.randrange(16, 200)  # other tests have networks of their own above
    with subprocess.Popen([*before, sys.executable, str(TRAFFIC), name, str(net)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Traffic(process, net)
        finally:
            process.stdin.close()
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()


def flush(running):
    return running.flush(time.time_ns())


def contents(path):
    """Of a file that not every kernel has."""
    return Path(path).read_text() if Path(path).exists() else ""


def children_of(pid):
    return {path.parent.name for path in Path("/proc").glob("[0-9]*/stat")
            if contents(path).rpartition(")")[2].split()[1:2] == [str(pid)]}


def whole(running, name, *before):
    """A scenario of one step, and its points."""
    with traffic(name, *before) as made:
        told = made.step()
        return told, made.own(flush(running)), made


def total(records, field, **tags):
    return sum(r.fields.get(field, 0) for r in records if all(r.tags[k] == v for k, v in tags.items()))


def sides(records, field):
    return total(records, field, direction="outgoing"), total(records, field, direction="incoming")


def test_every_tag_and_field_of_a_plain_connection(netflow):
    with traffic("plain") as made:
        told = made.step()
        cgroups = contents(f"/proc/{told['pid']}/cgroup")
        first = made.own(flush(netflow))
        made.step()
        second = made.own(flush(netflow))
    client, server = told["client"], told["server"]
    by_way = {r.tags["direction"]: r for r in first}
    assert len(first) == len(second) == 2
    for way, here, there in (("outgoing", client, server), ("incoming", server, client)):
        tags, fields = by_way[way].tags, by_way[way].fields
        assert (tags.keys(), fields.keys()) == (TAGS, TCP)
        starred = [address if way == side or int(address[1]) < 32768 else [address[0], "*"]
                   for address, side in ((here["local"], "incoming"), (here["remote"], "outgoing"))]
        assert [[tags["src_ip"], tags["src_port"]], [tags["dst_ip"], tags["dst_port"]]] == [
            [ip, str(port)] for ip, port in starred]
        assert (tags["src_ip_type"], tags["dst_ip_type"], tags["family"], tags["transport"]) == (
            "private", "private", "IPv4", "tcp")
        assert (tags["dst_nat_ip"], tags["dst_nat_port"], tags["source"], tags["host"]) == ("N/A", "N/A", NAME, "box")
        assert (tags["pid"], tags["process_name"]) == (str(told["pid"]), told["comm"])
        if here["ss"]:
            assert re.search(rf'"{tags["process_name"]}",pid={tags["pid"]},', here["ss"])
        assert tags["cgroup"] == "N/A" or f":{tags['cgroup']}\n" in cgroups
        assert (fields["bytes_read"], fields["bytes_written"]) == (here["received"], there["received"])
        assert fields["retransmits"] == here["retransmits"]
        assert 0 < fields["rtt"] <= 1_000_000
        assert (fields["tcp_established"], fields["tcp_closed"]) == (1, 0)
    assert sides(second, "bytes_written") == (10, 20)
    assert sides(second, "tcp_established") == (0, 0)
    assert sides(second, "tcp_closed") == (1, 1)


def test_a_flush_for_which_there_are_no_descriptors_tells_what_was_counted(netflow):
    """Translated destinations are looked for in files; that there are none is no reason to lose an interval."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with traffic("plain") as made:
        made.step()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            records = list(flush(netflow))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        made.step()
        later = made.own(flush(netflow))
    assert sides(made.own(records), "bytes_written") == (100_001, 50_003)
    assert sides(later, "bytes_written") == (10, 20)


@pytest.mark.thorough
def test_ipv6(netflow):
    if not signs.IPV6:
        pytest.skip("this kernel is built without IPv6")
    told, records, made = whole(netflow, "ipv6")
    assert {r.tags["family"] for r in records} == {"IPv6"}
    assert {r.tags[end] for r in records for end in ("src_ip", "dst_ip")} == {f"fd{made.net:02x}::1"}
    assert {r.tags["src_ip_type"] for r in records} == {"private"}
    assert sides(records, "bytes_written") == (told["server"]["received"], told["client"]["received"]) == (7001, 3001)
    assert sides(records, "bytes_read") == (3001, 7001)


@pytest.mark.thorough
def test_dual_stack_sockets_that_speak_ipv4_are_ipv4(netflow):
    if not signs.IPV6:
        pytest.skip("this kernel is built without IPv6")
    told, records, made = whole(netflow, "dual_stack")
    assert {r.tags["family"] for r in records} == {"IPv4"}
    (client,) = [r for r in records if r.tags["direction"] == "outgoing"]
    assert (client.tags["dst_ip"], client.tags["dst_port"]) == (f"10.{made.net}.0.2", str(told["port"]))
    assert sides(records, "bytes_written") == (4001, 2001)
    assert sides(records, "tcp_established") == sides(records, "tcp_closed") == (1, 1)


@pytest.mark.thorough
def test_sendfile_and_splice_are_counted_once(netflow):
    told, records, _ = whole(netflow, "sent_by_the_kernel")
    assert total(records, "bytes_written", direction="outgoing") == told["server"]["received"] == told["size"]
    assert total(records, "bytes_read", direction="incoming") == told["size"]
    assert total(records, "bytes_read", direction="outgoing") == total(
        records, "bytes_written", direction="incoming") == 0


@pytest.mark.thorough
def test_a_refused_connection_is_no_connection(netflow):
    _, records, _ = whole(netflow, "refused")
    assert records == []


def test_what_goes_on_behind_a_half_close_counts(netflow):
    with traffic("half_closed") as made:
        made.step()
        records = made.own(flush(netflow))
        assert total(records, "tcp_closed") == 0
        told = made.step()
        records += made.own(flush(netflow))
    assert sides(records, "bytes_written") == (100, 70_001)
    assert sides(records, "bytes_read") == (told["got"], 100) == (70_001, 100)
    assert sides(records, "tcp_established") == sides(records, "tcp_closed") == (1, 1)


@pytest.mark.thorough
def test_a_reset_closes_both_sides_once(netflow):
    _, records, _ = whole(netflow, "reset")
    assert sides(records, "bytes_written") == (100, 200)
    assert sides(records, "tcp_established") == sides(records, "tcp_closed") == (1, 1)


@pytest.mark.thorough
def test_connections_older_than_the_collector(oracle):
    """Bytes from then on, no beginning, the right direction, and whose they are even if no process touches them."""
    with traffic("old") as made:
        port = made.step()["port"]
        with closing(start(oracle)) as netflow:
            told = made.step()
            records = made.own(flush(netflow))
    net = made.net
    tcp = [r for r in records if r.tags["transport"] == "tcp"]
    assert total(tcp, "tcp_established") == 0
    assert total(tcp, "tcp_closed") == 8

    def between(field, client, server):
        return (total(tcp, field, src_ip=f"10.{net}.0.{client}", dst_ip=f"10.{net}.0.{server}"),
                total(tcp, field, src_ip=f"10.{net}.0.{server}", dst_ip=f"10.{net}.0.{client}"))

    assert between("bytes_written", 1, 2) == between("bytes_read", 2, 1)[::1] == (77, 33)
    assert between("bytes_written", 6, 5) == (0, 1234)
    assert between("bytes_read", 6, 5) == (1234, 0)
    assert between("bytes_written", 8, 7) == (11, 22)
    # Only of this one somebody still listened when the collector came: the others' direction nobody can tell any more.
    assert [(r.tags["direction"], r.tags["src_port"]) for r in tcp if r.tags["src_ip"] == f"10.{net}.0.7"] == [
        ("incoming", str(port))]
    assert {r.tags["pid"] for r in tcp} == {str(told["pid"])}
    assert {r.tags["process_name"] for r in tcp} == {told["comm"]}
    answered = [r for r in records if r.tags["transport"] == "udp" and r.tags["src_port"] == "5353"]
    assert [(r.tags["direction"], r.fields["bytes_written"]) for r in answered] == [("incoming", 11)]


@pytest.mark.thorough
def test_a_fork_neither_splits_nor_doubles(netflow):
    _, records, _ = whole(netflow, "forked")
    assert sides(records, "bytes_written") == (111, 500)
    assert sides(records, "bytes_read") == (500, 111)
    assert sides(records, "tcp_established") == sides(records, "tcp_closed") == (1, 1)
    assert len(records) == 2


@pytest.mark.thorough
def test_a_passed_descriptor_neither_splits_nor_doubles(netflow):
    told, records, _ = whole(netflow, "passed")
    assert sides(records, "bytes_written") == (3000, 10)
    assert sides(records, "tcp_established") == sides(records, "tcp_closed") == (1, 1)
    assert {r.tags["pid"] for r in records if r.tags["direction"] == "outgoing"} == {str(told["pid"])}


@pytest.mark.thorough
def test_many_short_ones_make_one_flow_a_side(netflow):
    told, records, _ = whole(netflow, "many")
    count = told["count"]
    assert sides(records, "bytes_written") == (30 * count, 50 * count)
    assert sides(records, "bytes_read") == (50 * count, 30 * count)
    assert sides(records, "tcp_established") == sides(records, "tcp_closed") == (count, count)
    assert {r.tags["src_port"] for r in records if r.tags["direction"] == "outgoing"} == {"*"}


def test_datagrams_connected_and_not(netflow):
    told, records, made = whole(netflow, "datagrams")
    net = made.net
    assert {r.tags["transport"] for r in records} == {"udp"}
    assert {tuple(r.fields) for r in records} == {("bytes_read", "bytes_written")}
    for client, written, read in ((3, 1901, 3802), (4, 1901, 21)):
        assert total(records, "bytes_written", src_ip=f"10.{net}.0.{client}") == written
        assert total(records, "bytes_read", src_ip=f"10.{net}.0.{client}") == read
        assert total(records, "bytes_read", src_port=str(told["port"]), dst_ip=f"10.{net}.0.{client}") == written
        assert total(records, "bytes_written", src_port=str(told["port"]), dst_ip=f"10.{net}.0.{client}") == read
    assert {r.tags["direction"] for r in records if r.tags["src_port"] == str(told["port"])} == {"incoming"}


def test_translated_destinations_are_those_of_the_connection_tracker(translating):
    with traffic("nat") as made:
        told = made.step()
        first = made.own(flush(translating))
        made.step()
        second = made.own(flush(translating))
    net = made.net
    translated = {tuple(map(str, one)) for one in told["tracked"] if one[:2] != one[2:]}
    told_by_us = {tuple(r.tags[tag] for tag in ("dst_ip", "dst_port", "dst_nat_ip", "dst_nat_port"))
                  for r in first if r.tags["dst_nat_ip"] != "N/A"}
    assert told_by_us == translated == {(f"10.{net}.0.80", "80", f"10.{net}.0.2", "8080"),
                                        (f"10.{net}.0.80", "53", f"10.{net}.0.2", "5300")}
    assert total(first, "bytes_written", dst_ip=f"10.{net}.0.80", transport="tcp") == 1234
    assert total(first, "bytes_written", dst_ip=f"10.{net}.0.80", transport="udp") == 21
    assert total(second, "bytes_written", dst_ip=f"10.{net}.0.80") == 1
    # A source that was translated is the far side's business: its server sees another client.
    assert told["seen"] == f"10.{net}.0.91"
    assert total(first, "bytes_written", dst_ip=f"10.{net}.0.91", direction="incoming") == 66
    assert {r.tags["dst_nat_ip"] for r in first if r.tags["dst_ip"] == f"10.{net}.0.90"} == {"N/A"}
    assert {r.tags["dst_nat_ip"] for r in first + second if r.tags["direction"] == "incoming"} == {"N/A"}


@pytest.mark.thorough
def test_ctnetlink_keeps_one_descriptor_a_namespace():
    def descriptors():
        return len([*Path("/proc/self/fd").iterdir()])

    with traffic("nat") as made:
        made.step()
        before, told = descriptors(), []
        with closing(Trackers(lambda netns, ended, one: told.append(one), lambda _: None)) as trackers:
            trackers.settle()
            assert trackers.namespaces >= 2
            assert descriptors() - before == trackers.namespaces + 1  # that of epoll
    assert f"10.{made.net}.0.80" in {socket.inet_ntoa(one.destination[12:]) for one in told}


@pytest.mark.thorough
def test_short_connections_to_a_balanced_address_are_told_apart(translating):
    with traffic("nat_many") as made:
        made.step()
        flush(translating)
        rounds = []
        for _ in range(3):
            went = made.step()["went"]
            rounds.append((went, [r for r in made.own(flush(translating)) if r.tags["direction"] == "outgoing"]))
    # Of the first round nothing was known when it began: N/A is honest, and no byte may be lost or doubled.
    for went, records in rounds:
        assert total(records, "tcp_established") == sum(went.values()) == 20
        assert total(records, "bytes_written") == 200
        for real, count in went.items():
            assert total(records, "tcp_established", dst_nat_ip=real) <= count
    went, records = rounds[-1]
    assert {real: total(records, "tcp_established", dst_nat_ip=real) for real in went} == went


@pytest.mark.thorough
def test_multipath_tcp_is_counted_once(netflow):
    if netflow.how != "rawtp hooks":
        pytest.skip("what kprobes see of subflows differs from kernel to kernel")
    _, records, _ = whole(netflow, "multipath")
    assert sides(records, "tcp_established") == sides(records, "tcp_closed") == (1, 1)
    assert sides(records, "bytes_written") == (40_000, 20_000)
    assert sides(records, "bytes_read") == (20_000, 40_000)


def test_a_pid_is_the_machines_own_whatever_the_process_takes_it_for(netflow):
    with traffic("elsewhere", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc") as made:
        made.step()
        children = children_of(made.process.pid)
        records = made.own(flush(netflow))
    assert {r.tags["pid"] for r in records} == children
    assert not {str(os.getpid()), "1"} & {r.tags["pid"] for r in records}
