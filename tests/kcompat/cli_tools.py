"""Runs the command as a user does, makes small kernels' files for it, and checks the shape of what it prints."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kcompat.btf_builder import BtfBuilder
from tests.kcompat.elf_builder import elf, note

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from kcompat.cli import main; main(prog_name='kcompat')")
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
BANNER = b"Linux version 6.1.0-test (builder@host) (gcc) #1 SMP PREEMPT_DYNAMIC\0"
BUILD_ID = bytes(range(20))
RELEASE = os.uname().release


def environment(home):
    """Everything a user's own files would be found by, in `home`."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_DATA_HOME": str(home / "data"),
            "XDG_CACHE_HOME": str(home / "cache"), "KCOMPAT_CACHE": str(home / "compiled"),
            "KCOMPAT_RUN": str(home / "run"), "KCOMPAT_SPOOL": str(home / "spool"),
            "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def kcompat(*arguments, home, as_nobody=False, **options):
    """One run to its end: returncode, stdout, stderr."""
    command = (*(NOBODY if as_nobody else ()), *COMMAND, *map(str, arguments))
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, env=environment(home), cwd="/", text=True, timeout=60, **(defaults | options))


@contextmanager
def home_of_nobody():
    """A directory that somebody who is not root can write; pytest's own are for root's eyes only."""
    home = Path(tempfile.mkdtemp(prefix="kcompat-home-"))
    home.chmod(0o755)
    os.chown(home, 65534, 65534)
    try:
        yield home
    finally:
        shutil.rmtree(home)


def nobody_can_run():
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return False
    return subprocess.run([*NOBODY, "test", "-r", ROOT / "kcompat/cli.py", "-a", "-x", sys.executable],
                          check=False, timeout=10).returncode == 0


needs_nobody = pytest.mark.skipif(not nobody_can_run(), reason="cannot become somebody who is not root")


def one_line(stderr):
    """The one line that says what is wrong."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("kcompat: ")]
    assert stderr.splitlines() == lines[:1], stderr
    return lines[0]


def sock_common():
    """BTF of a kernel with one struct of the catalogue, at offsets no real kernel has."""
    b = BtfBuilder()
    u8, u16, u32 = b.int("unsigned char", 1), b.int("unsigned short", 2), b.int("unsigned int", 4)
    b.struct("sock_common", 96, ("skc_daddr", u32, 0), ("skc_rcv_saddr", u32, 32), ("skc_dport", u16, 40 * 8),
             ("skc_num", u16, 42 * 8), ("skc_family", u16, 44 * 8), ("skc_state", u8, 46 * 8))
    return b.build()


def vmlinux(path, *, btf=None, banner=BANNER):
    """An ELF file that is a kernel in all that is looked at."""
    sections = [(".notes", 7, 2, note(BUILD_ID)), (".rodata", 1, 2, banner)]
    path.write_bytes(elf([*sections, (".BTF", 1, 2, btf)] if btf else sections))
    return path


def check_offsets(document):
    """Design section 8, to the letter."""
    assert list(document) == ["kernel", "fields", "stats"]
    assert list(document["kernel"]) == ["build_id", "release", "version", "machine"]
    assert all(isinstance(value, str | None) for value in document["kernel"].values())
    for one in document["fields"]:
        check_field(one)
    check_stats(document["stats"])


def check_field(one):
    assert list(one)[:11] == ["struct", "member", "state", "offset", "bit_offset", "width", "source", "verdict",
                              "confidence", "candidates", "reason"]
    assert isinstance(one["struct"], str) and isinstance(one["member"], str)
    assert one["state"] in ("known", "absent", "unknown")
    assert one["source"] in ("db", "btf", "dwarf", "guess", "none")
    assert one["verdict"] in ("ok", "ambiguous", "absent", "unverified")
    assert isinstance(one["confidence"], float | int) and 0 <= one["confidence"] <= 1
    assert isinstance(one["candidates"], list) and all(type(c) is int for c in one["candidates"])
    assert (one["state"] == "known") == (type(one["offset"]) is int) == (type(one["width"]) is int)
    assert one["bit_offset"] is None or 0 <= one["bit_offset"] <= 7
    assert (one["state"] == "known") == (one["verdict"] == "ok")
    assert (one["state"] == "absent") == (one["verdict"] == "absent")
    assert one["state"] == "known" or (isinstance(one["reason"], str) and one["reason"])


def check_stats(stats):
    counts, seconds = ("connections", "samples", "rounds"), ("compile_s", "sampling_s", "solving_s", "total_s")
    assert set(stats) == {*counts, *seconds}
    assert all(type(stats[name]) is int and stats[name] >= 0 for name in counts)
    assert all(isinstance(stats[name], float | int) and stats[name] >= 0 for name in seconds)


def send_over_loopback(size):
    """One connection that carries so many bytes and ends; its server's port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client, server.accept()[0] as peer:
            client.sendall(bytes(size))
            client.shutdown(socket.SHUT_WR)
            while peer.recv(1 << 16):
                pass
    return port


@contextmanager
def collecting(*arguments, home, within=()):
    """A running `kcompat collect`, attached; killed if the test does not end it. `within` is what executes it."""
    command = (*within, *COMMAND, "collect", *map(str, arguments))
    with subprocess.Popen(command, env=environment(home), cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        try:
            for line in process.stderr:
                if "collecting" in line:
                    break
            else:
                raise AssertionError(f"ended with {process.wait()} before it collected")
            yield process
        finally:
            process.kill()


def end(process, number=signal.SIGTERM):
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err
