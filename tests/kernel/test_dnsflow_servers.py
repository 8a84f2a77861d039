"""dnsflow beside a real server and real clients: what dnsmasq answered, as dig, dnsperf and tshark tell it too."""

import re
import socket
import subprocess
import threading
import time
from collections import Counter

import pytest

from tests.collector import wire as bytes_of
from tests.kernel import wires
from tests.kernel.captures import capturing, values
from tests.kernel.conftest import wires_and
from tests.kernel.test_dnsflow import counts, dnsflow, in_namespace, one

pytestmark = pytest.mark.thorough

CLIENT, SERVER, MUTE = "10.205.0.1", "10.205.0.2", "10.205.0.3"
UPSTREAM_PORT = 5399
SLOW_S, SLOWEST_S = 0.02, 0.3
NUMBERS = {"NOERROR": 0, "SERVFAIL": 2, "NXDOMAIN": 3, "REFUSED": 5}
QUERIES = 20_000


@pytest.fixture(scope="module", autouse=True)
def tools():
    wires_and("dnsmasq", "dig", "dnsperf", "tshark")


@pytest.fixture(scope="module")
def ends():
    with wires.wire((f"{CLIENT}/24", f"{SERVER}/24")) as made:
        wires.ip("-n", made[1].name, "address", "add", f"{MUTE}/24", "dev", "wire")
        yield made


def answer_slowly(query, reply):
    """An upstream: SERVFAIL for what is said to fail, an address for the rest, after the time its name asks for."""
    if b"\4fail" in query:
        return reply(query[:2] + b"\x81\x82" + query[4:])
    delay_s = SLOWEST_S if b"\7slowest" in query else SLOW_S
    answer = query[:2] + b"\x81\x80" + query[4:6] + b"\0\1\0\0" + query[10:]
    # What follows the question, an EDNS record, is dropped: dnsmasq asks without.
    end = query.index(b"\0", 12) + 5
    answer = answer[:10] + b"\0\0" + query[12:end] + bytes_of.record(b"\xc0\x0c", 1, socket.inet_aton(SERVER))
    timer = threading.Timer(delay_s, reply, (answer,))
    timer.daemon = True
    return timer.start()


@pytest.fixture(scope="module")
def dnsmasq(ends):
    """ok.test and big.test are known, nx.test is known to have nothing, up.test is asked upstream, the rest refused."""
    def upstream():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", UPSTREAM_PORT))

        def serve():
            while True:
                try:
                    query, peer = server.recvfrom(4096)
                except OSError:
                    return
                answer_slowly(query, lambda reply, peer=peer: server.sendto(reply, peer))

        threading.Thread(target=serve, daemon=True).start()
        return server

    server = ends[1].run(upstream)
    command = ends[1].command(
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=",
        "--user=root", f"--listen-address={SERVER}", "--bind-interfaces", "--cache-size=0", "--dns-forward-max=1000",
        f"--address=/ok.test/{SERVER}", "--local=/nx.test/", f"--server=/up.test/127.0.0.1#{UPSTREAM_PORT}",
        *(f"--txt-record=big.test,{'x' * 200}{number}" for number in range(12)))
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 20
            while subprocess.run(ends[0].command("dig", f"@{SERVER}", "ok.test", "+tries=1", "+timeout=1", "+short"),
                                 capture_output=True, text=True, check=False).stdout.strip() != SERVER:
                assert process.poll() is None and time.monotonic() < deadline
            yield process
        finally:
            process.terminate()
            server.close()


def dig(end, *arguments):
    """The statuses dig tells of, as many as it asked."""
    done = subprocess.run(end.command("dig", "+tries=1", *arguments), capture_output=True, text=True, timeout=30,
                          check=False)
    return re.findall(r"status: (\w+)", done.stdout), done.stdout


@pytest.mark.parametrize("name, status", [("a.ok.test", "NOERROR"), ("a.nx.test", "NXDOMAIN"),
                                          ("fail.up.test", "SERVFAIL"), ("a.org", "REFUSED")])
def test_each_rcode_is_the_one_dig_was_told(ends, dnsmasq, name, status):
    with dnsflow(*ends) as running:
        told, _ = dig(ends[0], f"@{SERVER}", name)
        records = running.flush(1)

    assert told == [status]
    for direction in ("outgoing", "incoming"):
        assert counts(records, direction=direction) == {NUMBERS[status]: 1}


def test_what_is_truncated_is_asked_again_over_tcp(ends, dnsmasq):
    with dnsflow(*ends) as running:
        told, said = dig(ends[0], f"@{SERVER}", "big.test", "TXT", "+noedns")
        records = running.flush(1)

    assert told == ["NOERROR"] and "Truncated, retrying in TCP mode" in said
    for transport in ("udp", "tcp"):
        for direction in ("outgoing", "incoming"):
            assert counts(records, transport=transport, direction=direction) == {0: 1}


def test_what_edns_adds_to_the_rcode_is_there(ends):
    def bad_version(query):
        end = query.index(b"\0", 12) + 5
        return query[:2] + b"\x81\x80\0\1\0\0\0\0\0\1" + query[12:end] + bytes_of.opt(1)

    with in_namespace(ends[1], lambda: wires.answering(bad_version, address=MUTE)), dnsflow(*ends) as running:
        told, _ = dig(ends[0], f"@{MUTE}", "x.test", "+edns=1", "+noednsnegotiation")
        records = running.flush(1)

    assert told == ["BADVERS"]
    assert counts(records, direction="outgoing") == counts(records, direction="incoming") == {16: 1}


def test_who_is_never_answered_is_told_after_six_seconds(ends):
    with in_namespace(ends[1], lambda: wires.answering(lambda query: None, address=MUTE)), dnsflow(*ends) as running:
        told, said = dig(ends[0], f"@{MUTE}", "x.test", "+timeout=1")
        assert running.flush(1) == []
        time.sleep(6)
        records = running.flush(2)

    assert told == [] and ("no servers could be reached" in said or "timed out" in said)
    assert counts(records, direction="outgoing") == counts(records, direction="incoming") == {-1: 1}


def dnsperf(end, tmp_path, lines, *options):
    """What dnsperf says of itself: answers by rcode, and mean and longest latency in seconds."""
    queries = tmp_path / "queries"
    queries.write_text("".join(f"{line} A\n" for line in lines))
    done = subprocess.run(end.command("dnsperf", "-s", SERVER, "-d", queries, "-n", "1", *options), text=True,
                          capture_output=True, timeout=120, check=True)
    told = Counter({NUMBERS[name]: int(count) for name, count in re.findall(r"([A-Z]+) (\d+) \(", done.stdout)})
    mean, longest = re.search(r"Average Latency \(s\): +([\d.]+) \(min [\d.]+, max ([\d.]+)\)", done.stdout).groups()
    return told, float(mean), float(longest), done.stdout


def test_20_000_queries_at_full_speed_are_counted_to_the_last(ends, dnsmasq, tmp_path):
    lines = [f"h{number}.{('ok.test', 'nx.test', 'org')[number % 3]}" for number in range(QUERIES)]

    with dnsflow(*ends) as running:
        told, mean_s, longest_s, said = dnsperf(ends[0], tmp_path, lines)
        records = running.flush(1)

    assert told.total() == QUERIES, said
    assert counts(records, direction="outgoing") == counts(records, direction="incoming") == told
    assert not any(running.losses.values())
    outgoing = [r.fields for r in records if r.tags["direction"] == "outgoing"]
    # dnsperf's own time comes on top, between the packet and its seeing it.
    assert sum(f["latency"] * f["count"] for f in outgoing) / QUERIES / 1e9 <= mean_s
    assert max(f["latency_max"] for f in outgoing) / 1e9 <= longest_s


def test_latencies_are_those_of_dnsperf(ends, dnsmasq, tmp_path):
    """Behind an upstream that takes 20 ms, and once 300, dnsperf's own time is little of it."""
    lines = [f"h{number}.up.test" for number in range(2000)] + ["slowest.up.test"]

    with dnsflow(*ends) as running:
        told, mean_s, longest_s, said = dnsperf(ends[0], tmp_path, lines, "-Q", "1000")
        records = running.flush(1)

    assert told == {0: 2001}, said
    outgoing = one(records, direction="outgoing", dst_ip=SERVER).fields
    assert outgoing["count"] == 2001
    assert outgoing["latency"] / 1e9 == pytest.approx(mean_s, rel=0.1)
    assert outgoing["latency_max"] / 1e9 == pytest.approx(longest_s, rel=0.1)
    assert outgoing["latency_max"] / 1e9 >= SLOWEST_S


def test_tshark_on_the_same_wire_counts_the_same(ends, dnsmasq, tmp_path):
    capture = tmp_path / "wire.pcapng"
    with dnsflow(*ends) as running:
        with capturing(ends[0], capture, "port 53"):
            asked = [f"h{number}.{zone}" for number in range(40) for zone in ("ok.test", "nx.test", "org")]
            dnsperf(ends[0], tmp_path, asked)
            dig(ends[0], f"@{SERVER}", "big.test", "TXT", "+noedns")
        records = running.flush(1)
    rcodes, took_s = (values(capture, field, "dns.flags.response == 1") for field in ("dns.flags.rcode", "dns.time"))

    assert counts(records, direction="outgoing") == Counter(map(int, rcodes))
    longest = max(r.fields["latency_max"] for r in records if r.tags["direction"] == "outgoing")
    # Its microseconds and ours are of the same packets, not of the same moment of their way.
    assert longest / 1e9 == pytest.approx(max(map(float, took_s)), rel=0.2, abs=0.0005)
