"""A CO-RE program relocated by libbpf against BTF made of guesses reads what it reads with the kernel's own BTF."""

import contextlib
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kcompat import probe
from kcompat.btf import RUNNING, BtfResolver
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offsets, State
from offset_db.exchange_btf import render
from offset_db.rows import Remembered, Stored
from tests.kernel import signs
from tests.kernel.built import DEADLINE_S, minimal_btf, run
from tests.kernel.conftest import cannot, needs

# What minimal_btf.bpf.c writes, in its order.
NAMES = ("skc_num", "skc_daddr", "skc_rcv_saddr", "skc_dport", "skc_family", "skc_state", "skc_bound_dev_if",
         "skc_cookie", "inum", "sk_mark", "sk_rcvbuf", "sk_type", "inet_saddr", "inet_sport", "srtt_us", "mdev_us",
         "snd_nxt", "bytes_received", "v6_rcv_saddr[3]")
MARK = 0x1234


def host(packed):
    """Bytes as the program reads them: an integer in the machine's own order."""
    return int.from_bytes(packed, sys.byteorder)


@pytest.fixture(scope="module")
def built():
    """(the loader, the object): its programs are on raw tracepoints."""
    needs(probe.raw_tracepoint)
    try:
        return minimal_btf()
    except FileNotFoundError as error:
        return cannot(f"needs clang, libbpf-dev, libelf-dev and gcc: {error}")


@pytest.fixture(scope="module")
def made(guessed, tmp_path_factory):
    """The BTF made of a guess of this kernel; BTF was not asked."""
    offsets = guessed[0].offsets
    path = tmp_path_factory.mktemp("btf") / "guessed.btf"
    path.write_bytes(btf_of(offsets.values()))
    return path, offsets


def btf_of(offsets):
    return render(Remembered(Kernel.running(), "", "", tuple(Stored(o, "2031-01-01T00:00:00Z") for o in offsets)))


@contextlib.contextmanager
def loaded(built, btf, port):
    loader, program = built
    with subprocess.Popen([loader, program, btf, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout.readline() != "ready\n":
                cannot(f"libbpf: {process.communicate(timeout=DEADLINE_S)[1]}")
            yield process
        finally:
            process.kill()


def values(process):
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return dict(zip(NAMES, map(int, out.split()), strict=True))


def test_it_says_what_was_guessed(made):
    path, offsets = made

    again = Offsets(BtfResolver(path).resolve(Kernel.running(), CATALOGUE))

    # An element of an array has no name there.
    known = [o for o in offsets.values() if o.state is State.KNOWN and "[" not in o.field.paths[0]]
    assert known and all(again[o.field].same_place(o) and again[o.field].width == o.width for o in known)


def test_bpftool_reads_it(made, tmp_path):
    path, _ = made

    header = tmp_path / "vmlinux.h"
    header.write_text(run("bpftool", "btf", "dump", "file", path, "format", "c") + """
        _Static_assert(__builtin_offsetof(struct inet_sock, sk.__sk_common.skc_daddr) == 0, "nested");
    """)

    assert "'sock_common'" in run("bpftool", "btf", "dump", "file", path, "format", "raw")
    run("gcc", "-fsyntax-only", "-Wno-pragmas", "-Wno-unknown-pragmas", header)


def observed(built, *btfs):
    """One connection to 127.0.0.7 and its end, as the program saw it with each BTF; then the two addresses."""
    with socket.create_server(("127.0.0.7", 0)) as server, socket.socket() as client, contextlib.ExitStack() as stack:
        client.bind(("127.0.0.9", 0))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        here, there = client.getsockname(), server.getsockname()
        loaders = [stack.enter_context(loaded(built, btf, here[1])) for btf in btfs]
        client.connect(there)
        accepted, _ = server.accept()
        accepted.sendall(b"x" * 777)
        client.recv(777, socket.MSG_WAITALL)
        client.close()
        accepted.close()
        return [*map(values, loaders), here, there]


def test_core_reads_the_same_with_it_as_with_the_kernels_own_and_what_the_socket_says(built, made):
    """On a kernel without BTF, for which this BTF is made, what the socket says is the judge."""
    btfs = (made[0], *([RUNNING] if RUNNING.exists() else []))

    seen, *true, here, there = observed(built, *btfs)

    assert true == [seen] * (len(btfs) - 1)
    assert seen | {
        "skc_num": here[1], "skc_dport": host(there[1].to_bytes(2, "big")), "skc_family": socket.AF_INET,
        "skc_daddr": host(socket.inet_aton(there[0])), "skc_rcv_saddr": host(socket.inet_aton(here[0])),
        "inet_saddr": host(socket.inet_aton(here[0])), "inet_sport": host(here[1].to_bytes(2, "big")),
        "sk_type": socket.SOCK_STREAM, "sk_mark": MARK,
        "inum": Path("/proc/self/ns/net").stat().st_ino if signs.NET_NS else 0,
        "bytes_received": 777,
    } == seen
    assert seen["srtt_us"] and seen["snd_nxt"]


def test_it_is_this_btf_that_core_goes_by(built, made, tmp_path):
    """The two addresses exchanged in the BTF are exchanged in what is read: nothing falls back on the kernel's own."""
    path, offsets = made
    one, other = offsets[find("skc_daddr")], offsets[find("skc_rcv_saddr")]
    exchanged = tmp_path / "exchanged.btf"
    exchanged.write_bytes(btf_of([*(o for o in offsets.values() if o not in (one, other)),
                                  replace(one, offset=other.offset), replace(other, offset=one.offset)]))

    right, wrong, *_ = observed(built, path, exchanged)

    assert (wrong["skc_daddr"], wrong["skc_rcv_saddr"]) == (right["skc_rcv_saddr"], right["skc_daddr"])
