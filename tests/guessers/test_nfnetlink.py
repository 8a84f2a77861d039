"""A conversation with the connection tracker: each question gets its own answer, and none is made up."""

import errno
import socket
import struct

import pytest

from guessers.nfnetlink import Netfilter, Tuple, numbered

ENTRY = Tuple(socket.AF_INET, socket.IPPROTO_UDP, b"\x7f\1\2\3", b"\x7f\4\5\6", 1234, 4321)


@pytest.fixture
def kernel(monkeypatch):
    """The kernel's end of a conversation."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr("guessers.nfnetlink.socket.socket", lambda *_: ours)
    with kernels:
        yield kernels


def message(kind, number, body):
    return numbered(struct.pack("<IHHII", 16 + len(body), kind, 0, 0, 0) + body, number)


def acknowledged(number, error=0):
    return message(2, number, struct.pack("<i", -error) + bytes(16))


def attribute(kind, number):
    return struct.pack("<HH", 8, kind) + number.to_bytes(4, "big")


def test_what_answers_an_earlier_question_is_passed_over(kernel):
    with Netfilter() as netfilter:
        kernel.send(acknowledged(0) + acknowledged(77, errno.EINVAL))
        kernel.send(message(0x100, 1, bytes(4) + attribute(3, 0x20E) + attribute(8, 42)))
        kernel.send(acknowledged(1))
        assert netfilter.status_and_mark(ENTRY) == (0x20E, 42)
        asked = kernel.recv(4096)
        assert struct.unpack_from("<IHHI", asked) == (len(asked), 0x101, 5, 1)


def test_an_acknowledgement_without_an_answer_is_no_status(kernel):
    with Netfilter() as netfilter:
        kernel.send(acknowledged(1))
        with pytest.raises(OSError, match="No data available"):
            netfilter.status_and_mark(ENTRY)
        kernel.send(acknowledged(2, errno.ENOENT))
        with pytest.raises(FileNotFoundError):
            netfilter.status_and_mark(ENTRY)
        kernel.send(message(0x100, 3, bytes(4) + attribute(3, 8)))
        kernel.send(acknowledged(3))
        assert netfilter.status_and_mark(ENTRY) == (8, None)


def test_of_a_refused_batch_the_rest_of_the_answers_is_not_taken_for_the_next_ones(kernel):
    """Where there is no table for both families, each message of the batch is refused."""
    with Netfilter() as netfilter:
        kernel.send(acknowledged(1, errno.EOPNOTSUPP))
        kernel.send(acknowledged(1, errno.ENOENT))
        kernel.send(acknowledged(2))
        kernel.send(acknowledged(3))
        netfilter.track()
        families = []
        for _ in range(3):
            batch = kernel.recv(4096)
            families.append(batch[20 + 16])  # nfgen_family of the second message
        assert families == [1, 2, 10]
