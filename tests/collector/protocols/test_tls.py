"""The name in a client's hello as OpenSSL sends it; none that was not asked for, out of any bytes."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.protocols.tls import is_hello, server_name


def hello(name, **settings):
    context = ssl.create_default_context()
    for setting, value in settings.items():
        getattr(context, setting)(*value)
    said = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname=name).do_handshake()
    return said.read()


NAME = b"www.example.org"
HELLO = hello(NAME.decode())


def in_records(data, size):
    """The same hello over several records."""
    body = data[5:]
    return b"".join(data[:3] + len(part).to_bytes(2, "big") + part
                    for part in (body[at:at + size] for at in range(0, len(body), size)))


@pytest.mark.parametrize("name", ["example.org", "a_b.x-y.org", "x" * 63 + ".org"])
def test_the_name_a_client_asks_for(name):
    assert server_name(hello(name)) == name
    assert server_name(hello(name, set_alpn_protocols=[["h2", "http/1.1"]]) + b"and more") == name


def test_over_any_records_and_whatever_comes_behind():
    for size in (10, 11, 100):
        assert server_name(in_records(HELLO, size) + b"\x17\x03\x03\0\x05hello") == "www.example.org"


def test_case_and_the_last_dot_do_not_count_and_what_is_no_name_is_none():
    for sent, told in ((b"WWW.example.orG", "www.example.org"), (b"ww.example.org.", "ww.example.org"),
                       (b"1.2.3.4.5.6.789", None), (b"www.exam le.org", None), (b"www.exam\xffle.org", None)):
        assert server_name(HELLO.replace(NAME, sent)) == told
    assert server_name(hello("127.0.0.1")) is None


@given(st.integers(0, len(HELLO)))
def test_cut_anywhere_it_is_the_name_or_none(size):
    assert server_name(HELLO[:size]) == (NAME.decode() if NAME in HELLO[:size] else None)


@given(st.binary(max_size=200), st.integers(0, len(HELLO)), st.binary(max_size=20))
def test_no_bytes_do_harm(data, at, flips):
    for wire in (data, HELLO[:at] + flips + HELLO[at + len(flips):], b"\x16\x03\x01\x00\xff\x01" + data):
        assert is_hello(wire) or server_name(wire) is None
        assert (server_name(wire) or "x").isprintable()
