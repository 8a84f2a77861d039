"""What the canary makes of what was done and what was seen; the real one sings in tests/kernel/test_canary.py."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.canary import Refuted, Sighting, compare
from kcompat.fields import find


def v4(address):
    return bytes(10) + b"\xff\xff" + socket.inet_aton(address)


CLIENT = Sighting("tcp", v4("127.1.2.3"), 2000, v4("127.4.5.6"), 3000, 4026531840, 555, 777)
SERVER = Sighting("tcp", v4("127.4.5.6"), 3000, v4("127.1.2.3"), 2000, 4026531840, 777, 555)
V6 = CLIENT._replace(local=bytes(15) + b"\1", remote=bytes(15) + b"\2")


def blamed(done, seen):
    return {field.member for fault in compare(done, seen) for field in fault.fields}


def test_what_came_out_as_it_was_is_no_fault():
    assert list(compare([CLIENT, SERVER], [SERVER, CLIENT])) == []


def test_a_starred_ephemeral_port_is_as_good():
    assert list(compare([CLIENT], [CLIENT._replace(local_port=65535)])) == []


@pytest.mark.parametrize(("change", "fields"), [
    ({"local": v4("10.0.0.1")}, {"skc_rcv_saddr"}), ({"remote": v4("10.0.0.1")}, {"skc_daddr"}),
    ({"local_port": 9}, {"skc_num"}), ({"remote_port": 9}, {"skc_dport"}), ({"netns": 0}, {"skc_net", "ns.inum"}),
    ({"read": 0}, {"copied_seq"}), ({"written": 778}, {"write_seq"})])
def test_each_difference_blames_its_own_fields(change, fields):
    assert blamed([CLIENT, SERVER], [CLIENT._replace(**change), SERVER]) == fields


def test_ipv6_addresses_are_other_fields():
    assert blamed([V6], [V6._replace(local=bytes(16))]) == {"skc_v6_rcv_saddr"}


def test_nothing_seen_blames_what_says_whose_a_socket_is():
    assert blamed([CLIENT], []) == {"skc_family", "sk_protocol", "skc_state"}


@pytest.mark.parametrize("server", [SERVER, SERVER._replace(read=1), SERVER._replace(written=0, local_port=65535)])
def test_what_is_only_late_is_not_taken_for_what_another_socket_did(server):
    faults = list(compare([CLIENT, SERVER], [server]))
    assert faults[0].words == "no tcp flow of it was seen"
    assert all(fault.time_mends for fault in faults)


def test_what_is_wrong_is_blamed_beside_what_another_socket_did():
    assert blamed([CLIENT, SERVER], [SERVER, CLIENT._replace(local=v4("10.0.0.1"))]) == {"skc_rcv_saddr"}


def test_bytes_of_datagrams_blame_no_offset():
    """They come from what calls return."""
    udp = CLIENT._replace(transport="udp")
    (fault,) = compare([udp], [udp._replace(read=0)])
    assert fault.words == "udp read is 0, not 555" and fault.fields == ()


@given(st.permutations([CLIENT, SERVER, V6, CLIENT._replace(transport="udp", read=1)]))
def test_the_order_of_what_is_seen_does_not_matter(seen):
    assert list(compare(sorted(seen), seen)) == []


def test_the_error_names_the_dataset_what_was_wrong_and_each_field_once():
    faults = tuple(compare([CLIENT, SERVER], [s._replace(netns=7) for s in (CLIENT, SERVER)]))
    error = Refuted("netflow", faults)
    assert error.fields == (find("skc_net"), find("net.ns.inum"))
    assert str(error).startswith("netflow is off: a connection of our own came out wrong: tcp netns is 7, not 40265")
