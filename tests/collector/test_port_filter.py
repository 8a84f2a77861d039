"""The filter in the kernel's own interpreter, which any socket runs for any user: it passes what the parser takes."""

import socket
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.packet_ring import attach
from collector.port_filter import port_filter
from collector.protocols.packets import parse
from tests.collector.wire import TCP, UDP, ipv4, ipv6, tcp, udp

V4, V6 = ("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")
MORE = [(0, bytes(6)), (43, bytes(22)), (44, bytes(6)), (51, bytes(10)), (60, bytes(6))]


@pytest.fixture(scope="module")
def passes():
    """Whether a packet comes through: the kernel runs the filter on what one end of a socket pair sends."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    attach(receiver, port_filter(53))
    receiver.setblocking(False)

    def tried(packet):
        sender.send(packet)
        try:
            return receiver.recv(1 << 17) == packet
        except BlockingIOError:
            return False

    with closing(sender), closing(receiver):
        yield tried


@pytest.mark.parametrize("ports, expected", [((53, 9), True), ((9, 53), True), ((53, 53), True), ((9, 5353), False)])
def test_the_port_at_either_end(passes, ports, expected):
    for packet in (ipv4(*V4, UDP, udp(*ports, b"x")), ipv4(*V4, TCP, tcp(*ports, b"x"), options=bytes(12)),
                   ipv6(*V6, UDP, udp(*ports, b"x")), ipv6(*V6, TCP, tcp(*ports), MORE),
                   ipv6(*V6, UDP, udp(*ports, b""), [(60, bytes(6))] * 6)):
        assert passes(packet) == expected


def test_behind_what_is_left_of_tags(passes):
    for kind, packet in ((b"\x08\x00", ipv4(*V4, UDP, udp(9, 53, b"x"))), (b"\x86\xdd", ipv6(*V6, TCP, tcp(53, 9)))):
        assert passes(b"\x45\x0a" + kind + packet) and passes(b"\x00\x0b\x81\x00\x60\x0a" + kind + packet)


def test_no_later_fragments_no_other_protocols_nothing_else(passes):
    assert passes(ipv4(*V4, UDP, udp(9, 53, bytes(1472)), fragment=0x2000))
    for packet in (ipv4(*V4, UDP, udp(9, 53, b""), fragment=3), ipv4(*V4, 132, udp(9, 53, b"")),
                   ipv6(*V6, UDP, udp(9, 53, b""), [(44, b"\0\x10" + bytes(4))]), ipv6(*V6, 58, udp(9, 53, b"")),
                   ipv6(*V6, UDP, udp(9, 53, b""), [(60, bytes(6))] * 7), bytes(80), b"\x45", b"\x60"):
        assert not passes(packet)


@pytest.mark.parametrize("one_of", [8, 64])
def test_of_many_ports_of_clients_one_is_passed_both_ways(one_of):
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with closing(sender), closing(receiver):
        attach(receiver, port_filter(53, one_of))
        receiver.setblocking(False)
        for port in (*range(40000, 40140), 53, 54, 128):
            for packet in (ipv4(*V4, UDP, udp(port, 53, b"x")), ipv6(*V6, TCP, tcp(53, port), MORE)):
                sender.send(packet)
                try:
                    passed = receiver.recv(1 << 17) == packet
                except BlockingIOError:
                    passed = False
                assert passed == (port % one_of == 0)


PACKETS = (ipv4(*V4, UDP, udp(53, 9, b"q")), ipv4(*V4, TCP, tcp(9, 53, b"q"), options=bytes(40)),
           b"\x60\x0a\x86\xdd" + ipv6(*V6, UDP, udp(53, 53, b"q")), ipv6(*V6, TCP, tcp(53, 9, b"q"), MORE))
mutated = st.builds(lambda packet, at, junk: packet[:at] + junk + packet[at + len(junk):], st.sampled_from(PACKETS),
                    st.integers(0, 120), st.binary(max_size=3))


@given(mutated | st.binary(min_size=1, max_size=120))
def test_what_the_parser_takes_for_that_port_comes_through(passes, packet):
    segment = parse(packet)

    if segment and 53 in (segment.source_port, segment.destination_port):
        assert passes(packet)


def test_it_is_short_enough_for_any_kernel():
    assert len(port_filter(53)) // 8 < 4096 // 8
