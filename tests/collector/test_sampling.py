"""Of many flows one: always the same, of either direction, and about as many as is said."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.sampling import is_kept, is_port_kept

address, port = st.binary(min_size=16, max_size=16), st.integers(0, 65535)


@given(address, port, address, port, st.sampled_from([1, 8, 64]))
def test_a_flow_is_kept_from_either_side_or_from_none(local, local_port, remote, remote_port, one_of):
    kept = is_kept(one_of, local, local_port, remote, remote_port)

    assert kept == is_kept(one_of, remote, remote_port, local, local_port)
    assert kept or one_of > 1
    # Who is among the few is among the more.
    assert not kept or is_kept(max(1, one_of // 8), local, local_port, remote, remote_port)


@pytest.mark.parametrize("one_of", [8, 64])
def test_clients_of_a_server_are_kept_as_often_as_is_said(one_of):
    rng = random.Random(1)
    server = bytes(15) + b"\x01"
    # Linux gives connections even ports.
    ports = [32768 + 2 * n for n in range(14000)]
    for many in ([is_kept(one_of, server, 443, rng.randbytes(16), rng.choice(ports)) for _ in range(14000)],
                 [is_kept(one_of, server, 443, bytes(16), port) for port in ports]):
        assert 0.7 < sum(many) * one_of / len(many) < 1.4


def test_ports_are_kept_by_their_last_bits():
    assert [port for port in range(100) if is_port_kept(8, port)] == list(range(0, 100, 8))
