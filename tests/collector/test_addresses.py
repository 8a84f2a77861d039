"""Address text, type and family against the standard library's ipaddress."""

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector.addresses import Cidr, describe, reduce_mapped, star_ports

MAPPED = bytes(10) + b"\xff\xff"
v4 = st.binary(min_size=4, max_size=4)
# Half of them with runs of zeros, where RFC 5952 has its rules.
v6 = st.binary(min_size=16, max_size=16) | st.lists(
    st.sampled_from([b"\0\0", b"\0\1", b"\xfc\0", b"\xff\2", b"\x20\1"]), min_size=8, max_size=8).map(b"".join)
NETWORKS = [
    ("private", ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")),
    ("loopback", ("127.0.0.0/8", "::1/128")),
    ("multicast", ("224.0.0.0/4", "ff00::/8")),
]


def reduced(packed):
    address = ipaddress.ip_address(packed)
    return getattr(address, "ipv4_mapped", None) or address


def expected_type(address):
    networks = ((kind, ipaddress.ip_network(text)) for kind, texts in NETWORKS for text in texts)
    return next((kind for kind, network in networks
                 if address.version == network.version and address in network), "other")


@given(v6 | v4.map(MAPPED.__add__) | v4)
@example(bytes(16))
@example(bytes(12) + b"\1\2\3\4")
@example(MAPPED + bytes(4))
def test_text_type_and_family_are_those_of_ipaddress(packed):
    oracle = reduced(packed)
    address = describe(packed)

    assert address.text == str(oracle)
    assert address.family == f"IPv{oracle.version}"
    assert address.type == expected_type(oracle)
    assert address.is_zero == (int(oracle) == 0)


@pytest.mark.parametrize(("text", "kind"), [
    ("172.15.255.255", "other"), ("172.16.0.0", "private"), ("172.31.255.255", "private"), ("172.32.0.0", "other"),
    ("192.167.1.1", "other"), ("223.255.255.255", "other"), ("224.0.0.1", "multicast"), ("240.0.0.1", "other"),
    ("fbff::", "other"), ("fdff::1", "private"), ("fe80::1", "other"), ("::1", "loopback"), ("::2", "other"),
])
def test_type_at_the_borders(text, kind):
    family = socket.AF_INET6 if ":" in text else socket.AF_INET

    assert describe(socket.inet_pton(family, text)).type == kind


@given(v4 | v6, st.data())
def test_cidr_holds_what_ipaddress_holds(packed, data):
    address = reduced(packed)
    length = data.draw(st.integers(0, address.max_prefixlen))
    near = bytes(a ^ b for a, b in zip(address.packed, data.draw(st.sampled_from(
        [bytes(len(address.packed)), (1 << data.draw(st.integers(0, address.max_prefixlen - 1))).to_bytes(
            len(address.packed))])), strict=True))
    network = ipaddress.ip_network((address.packed, length), strict=False)

    assert Cidr.of(network).holds(near) == (ipaddress.ip_address(near) in network)


def test_a_v4_network_holds_mapped_addresses_and_a_mapped_network_holds_v4():
    ten = socket.inet_pton(socket.AF_INET, "10.1.2.3")

    assert Cidr.of(ipaddress.ip_network("10.0.0.0/8")).holds(MAPPED + ten)
    assert Cidr.of(ipaddress.ip_network("::ffff:10.0.0.0/104")).holds(ten)
    assert not Cidr.of(ipaddress.ip_network("::/0")).holds(ten)
    assert reduce_mapped(MAPPED + ten) == ten


@pytest.mark.parametrize(("direction", "ephemeral_port", "expected"), [
    ("outgoing", 32768, ("*", "50000")),
    ("incoming", 32768, ("40000", "*")),
    ("outgoing", 40001, ("40000", "50000")),
    ("outgoing", 40000, ("*", "50000")),
    ("incoming", 50001, ("40000", "50000")),
    ("incoming", 0, ("40000", "*")),
])
def test_only_the_clients_port_is_starred(direction, ephemeral_port, expected):
    assert star_ports(40000, 50000, direction, ephemeral_port) == expected
