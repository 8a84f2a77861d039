import os
import socket
import struct

import pytest

from guessers import facts as told
from guessers.facts import (
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_LISTEN,
    exact,
    facts,
    plant_numbers,
    settled,
    shifted,
    tcp_facts,
)
from guessers.sampling import _is_his
from kcompat.fields import find


@pytest.fixture
def pair():
    """Two ends of a connection over loopback, and the listener."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            yield client, accepted, server


def number(known, name, order="little"):
    [code] = known[find(name)]
    return int.from_bytes(code, order)


def test_both_ends_tell_the_same_of_each_other(pair):
    client, accepted, _ = (facts(end, bound_dev_if=0) for end in pair)
    assert client[find("skc_dport")] == accepted[find("inet_sport")]
    assert client[find("skc_daddr")] == accepted[find("skc_rcv_saddr")] == (bytes([127, 0, 0, 1]),)
    assert number(client, "skc_num") == pair[0].getsockname()[1] == number(client, "inet_sport", "big")
    assert number(client, "skc_state") == number(accepted, "skc_state") == TCP_ESTABLISHED


def test_a_listener_has_no_peer(pair):
    known = facts(pair[2], bound_dev_if=0)
    assert number(known, "skc_dport") == 0
    assert number(known, "skc_daddr") == 0
    assert number(known, "skc_state") == TCP_LISTEN
    assert find("srtt_us") not in known


def test_bytes_are_counted_as_they_were_sent(pair):
    client, accepted, _ = pair
    client.sendall(b"x" * 1234)
    assert accepted.recv(2000) == b"x" * 1234
    assert number(tcp_facts(accepted), "bytes_received") == 1234
    assert number(tcp_facts(client), "bytes_acked") in (1234, 1235)  # the SYN counts as one on the side that sent it


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN")
def test_what_was_acknowledged_stays_behind_what_came(pair):
    client, accepted, _ = pair
    client.sendall(b"x" * 1234)
    assert accepted.recv(2000) == b"x" * 1234
    for _ in range(2):  # asked again, it has not moved
        rcv_nxt = number(tcp_facts(accepted), "rcv_nxt")
        *_, rcv_wup = struct.unpack("<5I", accepted.getsockopt(socket.IPPROTO_TCP, told.TCP_REPAIR_WINDOW, 20))
        assert (rcv_nxt - rcv_wup) & 0xFFFF_FFFF == 1009


@pytest.mark.parametrize("size", [104, 136, 144, 160])
def test_a_short_tcp_info_tells_less_and_nothing_false(pair, monkeypatch, size):
    class Short:
        def getsockopt(self, level, option, length):
            return pair[0].getsockopt(level, option, length)[:size]

    monkeypatch.setattr(told, "_sequence_numbers", lambda sock: {})
    known = tcp_facts(Short())
    whole = tcp_facts(pair[0])
    assert all(whole[field] == codes for field, codes in known.items())
    assert (find("bytes_acked") in known) is (size >= 136)
    assert (find("segs_in") in known) is (size >= 144)
    assert find("total_retrans") in known


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN")
def test_a_closed_socket_has_the_numbers_it_was_given():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert find("rcv_nxt") not in tcp_facts(sock)
        plant_numbers(sock, (0x8765_4321, 0x9876_5432))
        known = tcp_facts(sock)
    assert (number(known, "rcv_nxt"), number(known, "write_seq")) == (0x8765_4321, 0x9876_5432)
    assert number(known, "skc_state") == TCP_CLOSE
    assert not {find("snd_nxt"), find("snd_una"), find("copied_seq")} & known.keys()


def test_an_address_of_a_group_is_received_on_and_not_sent_from():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("239.1.2.3", 0))
        known = facts(sock, bound_dev_if=0)
    assert known[find("skc_rcv_saddr")] == (bytes([239, 1, 2, 3]),)
    assert known[find("inet_saddr")] == (bytes(4),)


def test_the_cookie_is_the_sockets_own(pair):
    cookies = {facts(end, bound_dev_if=0).get(find("skc_cookie")) for end in pair}
    assert len(cookies) in (1, 3)  # 1: none of them tells, before 4.12


def test_only_what_stays_the_same_while_the_window_is_read_counts():
    port, state = find("skc_num"), find("skc_state")
    answers = iter([{port: exact(7, 2), state: exact(2, 1)}, {port: exact(7, 2), state: exact(1, 1)}])
    assert settled(lambda: next(answers), lambda: b"window") == (b"window", {port: exact(7, 2)})


def test_every_finer_value_that_reads_the_same_is_an_encoding():
    codes = shifted(57, 3)
    assert {struct.unpack("<I", code)[0] >> 3 for code in codes} == {57}
    assert len(codes) == 8


def test_a_window_without_the_sockets_mark_is_somebody_elses():
    known = {find("sk_mark"): exact(0x1234_5678, 4), find("skc_num"): exact(4000, 2)}
    assert _is_his(bytes(10) + exact(0x1234_5678, 4)[0], known)
    assert not _is_his(os.urandom(2) + bytes(10) + exact(4000, 2)[0], known)
    assert _is_his(bytes(10) + exact(4000, 2)[0], {find("skc_num"): exact(4000, 2)})
