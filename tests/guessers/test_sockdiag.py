"""The cookie by sock_diag is the one getsockopt tells, of just this socket, and of no other."""

import errno
import os
import socket
import struct

import pytest

from guessers import facts as told
from guessers import sockdiag
from guessers.facts import SO_COOKIE, facts
from kcompat.fields import find

ENDS = bytes(range(36))
COOKIE = b"\1\2\3\4\5\6\7\x08"


@pytest.fixture(params=[("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)], ids=["IPv4", "IPv6"])
def ends(request):
    """Two ends of a connection over loopback, and the listener."""
    address, family = request.param
    try:
        server = socket.create_server((address, 0), family=family)
    except OSError as error:
        pytest.skip(f"no {address} here: {error}")
    with server, socket.create_connection(server.getsockname()[:2]) as client, server.accept()[0] as accepted:
        yield client, accepted, server


def needs_an_answer():
    if not sockdiag.answers():
        pytest.skip("this kernel answers no sock_diag for TCP")


def test_each_end_has_the_cookie_that_getsockopt_tells(ends):
    needs_an_answer()

    asked = [sockdiag.cookie(end, bound_dev_if=0) for end in ends]

    assert asked == [end.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8) for end in ends]
    assert len(set(asked)) == 3


def test_a_socket_that_is_nowhere_to_be_found_has_none():
    needs_an_answer()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(OSError) as caught:
            sockdiag.cookie(sock, bound_dev_if=0)
    assert caught.value.errno == errno.ENOENT


def message(kind, body):
    return struct.pack("<IHHII", 16 + len(body), kind, 0, 0, 0) + body


def answer(ends=ENDS):
    return message(20, bytes(4) + ends + bytes(4) + COOKIE + bytes(20))


def test_the_answer_is_read_when_it_is_about_this_socket():
    assert sockdiag.read_cookie(answer(), ENDS) == COOKIE


@pytest.mark.parametrize(("given", "code"), [
    (answer(ENDS[::-1]), errno.ENOENT), (answer()[:58], errno.ENOENT), (b"", errno.ENOENT),
    (message(2, struct.pack("<i", -errno.EPERM) + bytes(16)), errno.EPERM),
], ids=["another socket", "short", "empty", "refused"])
def test_any_other_answer_is_an_error(given, code):
    with pytest.raises(OSError) as caught:
        sockdiag.read_cookie(given, ENDS)
    assert caught.value.errno == code


class WithoutCookie(socket.socket):
    """As before 4.12."""

    def getsockopt(self, level, option, *size):
        if (level, option) == (socket.SOL_SOCKET, SO_COOKIE):
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        return super().getsockopt(level, option, *size)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_where_the_socket_does_not_tell_sock_diag_is_asked_of_tcp(monkeypatch, kind):
    monkeypatch.setattr(told.sockdiag, "answers", lambda: True)
    monkeypatch.setattr(told.sockdiag, "cookie", lambda sock, bound_dev_if: COOKIE)
    with WithoutCookie(socket.AF_INET, kind) as sock:
        known = facts(sock, bound_dev_if=0)
    assert known.get(find("skc_cookie")) == ((COOKIE,) if kind == socket.SOCK_STREAM else None)


def test_where_nobody_answers_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(told.sockdiag, "answers", lambda: False)
    monkeypatch.setattr(told.sockdiag, "cookie", lambda *_, **__: pytest.fail("asked"))
    with WithoutCookie(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert find("skc_cookie") not in facts(sock, bound_dev_if=0)
