"""Packets taken apart: the same answer whatever surrounds the segment, and none that is wrong of what is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.protocols.packets import Segment, parse
from tests.collector.wire import ACK, TCP, UDP, ipv4, ipv6, packed, tcp, udp

V4 = ("10.0.0.1", "10.0.0.2")
V6 = ("fd00::1", "fd00::2")
PLAIN = Segment(UDP, packed(V4[0]), 5000, packed(V4[1]), 53, b"question", True)
PLAIN_V6 = PLAIN._replace(source=packed(V6[0]), destination=packed(V6[1]))


def test_a_datagram_over_ipv4_and_ipv6():
    assert parse(ipv4(*V4, UDP, udp(5000, 53, b"question"))) == PLAIN
    assert parse(ipv6(*V6, UDP, udp(5000, 53, b"question"))) == PLAIN_V6


def test_a_tcp_segment_behind_options():
    got = parse(ipv4(*V4, TCP, tcp(5000, 53, b"bytes", 7, ACK, bytes(12)), options=bytes(8)))

    assert got == Segment(TCP, packed(V4[0]), 5000, packed(V4[1]), 53, b"bytes", True, 7, ACK)


def test_what_pads_a_short_frame_is_no_payload():
    assert parse(ipv4(*V4, UDP, udp(5000, 53, b"question")) + bytes(30)) == PLAIN


@pytest.mark.parametrize("packet, expected", [
    (ipv4(*V4, UDP, udp(5000, 53, b"question")), PLAIN), (ipv6(*V6, UDP, udp(5000, 53, b"question")), PLAIN_V6)])
@pytest.mark.parametrize("control", [b"\x00\x0a", b"\x45\x0a", b"\x60\x0a", b"\x6f\xff"])
def test_what_is_left_of_tags_is_passed(packet, expected, control):
    inner = control + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd")

    assert parse(inner + packet) == parse(b"\x00\x0b\x81\x00" + inner + packet) == expected


def test_a_length_and_a_flow_label_that_look_like_a_tag_are_none():
    payload = bytes(2048 - 28)
    assert parse(ipv4(*V4, UDP, udp(5000, 53, payload))).payload == payload
    for label in (b"\x08\x00", b"\x86\xdd", b"\x81\x00"):
        packet = ipv6(*V6, UDP, udp(5000, 53, b"question"))
        assert parse(packet[:2] + label + packet[4:]) == PLAIN_V6


@pytest.mark.parametrize("extensions", [
    [(0, bytes(6))], [(60, bytes(14))], [(43, bytes(6)), (60, bytes(6))], [(51, bytes(22))],
    [(44, bytes(6))], [(0, bytes(6)), (43, bytes(22)), (44, bytes(6)), (51, bytes(10)), (60, bytes(6))],
])
def test_extension_headers_are_passed(extensions):
    assert parse(ipv6(*V6, UDP, udp(5000, 53, b"question"), extensions)) == PLAIN_V6


def test_a_first_fragment_is_not_whole_and_later_ones_have_no_ports():
    first = ipv4(*V4, UDP, udp(5000, 53, b"q" * 2000)[:1480], fragment=0x2000)
    assert parse(first) == PLAIN._replace(payload=b"q" * 1472, is_whole=False)
    assert parse(ipv4(*V4, UDP, bytes(1480), fragment=185)) is None
    assert parse(ipv6(*V6, UDP, udp(5000, 53, b"q" * 2000)[:1448], [(44, b"\0\1" + bytes(4))])).is_whole is False
    assert parse(ipv6(*V6, UDP, bytes(1448), [(44, b"\5\xa8" + bytes(4))])) is None


def test_what_is_neither_is_none():
    for packet in (ipv4(*V4, 1, bytes(64)), ipv6(*V6, 58, bytes(64)), ipv6(*V6, UDP, b"", [(135, bytes(6))]),
                   bytes(64), b"\x00\x01\x08\x00" + bytes(40)):
        assert parse(packet) is None


PACKETS = (ipv4(*V4, UDP, udp(5000, 53, b"question")), ipv6(*V6, TCP, tcp(5000, 53, b"bytes"), [(0, bytes(6))]),
           b"\0\x0a\x08\0" + ipv4(*V4, TCP, tcp(1, 2, b"bytes", options=bytes(40)), options=bytes(40)))


@given(st.binary(max_size=200) | st.builds(lambda b: b"\x60" + b, st.binary(min_size=50, max_size=200)) | st.builds(
    lambda packet, at, byte: packet[:at] + bytes([byte]) + packet[at + 1:], st.sampled_from(PACKETS),
    st.integers(0, 120), st.integers(0, 255)))
def test_any_bytes_make_a_segment_of_those_bytes_or_none(data):
    got = parse(data)

    if got:
        assert got.payload in data and got.transport in (UDP, TCP)
        assert 0 <= got.source_port <= 0xFFFF and len(got.source) == len(got.destination) == 16


@given(st.sampled_from(PACKETS), st.integers(0, 120))
def test_a_packet_cut_short_is_none_or_not_whole(packet, length):
    whole, got = parse(packet), parse(packet[:length])

    if length >= len(packet):
        assert got == whole
    elif got:
        assert not got.is_whole and whole.payload.startswith(got.payload)
        assert got._replace(payload=whole.payload, is_whole=True) == whole
