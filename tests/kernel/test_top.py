"""`kcompat top` for real: on a terminal, which is as it was when it has ended, and as JSON."""

import json
import os
import pty
import select
import signal
import subprocess
import termios
import threading
import time
from contextlib import contextmanager

import pytest

from tests.kcompat.cli_tools import COMMAND, environment, send_over_loopback

pytest.importorskip("textual")
pytestmark = [pytest.mark.thorough, pytest.mark.skipif(os.geteuid() != 0, reason="not root")]
ALTERNATE, BACK = b"\x1b[?1049h", b"\x1b[?1049l"


@contextmanager
def traffic():
    """Small connections over and over."""
    stop = threading.Event()

    def send():
        while not stop.wait(0.05):
            send_over_loopback(5000)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("leave", ["key", "signal"])
def test_it_shows_traffic_and_leaves_the_terminal_as_it_was(tmp_path, leave):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    before = termios.tcgetattr(slave)
    seen = b""
    command = (*COMMAND, "top", "--loopback", "--interval", "1", "--by", "process")
    try:
        with traffic(), subprocess.Popen(command, env=environment(tmp_path) | {"TERM": "xterm-256color"}, stdin=slave,
                                         stdout=slave, stderr=slave, start_new_session=True) as process:
            try:
                deadline, told = time.monotonic() + 240, False
                while process.poll() is None or select.select([master], [], [], 0)[0]:
                    assert time.monotonic() < deadline, seen[-2000:]
                    if select.select([master], [], [], 0.1)[0]:
                        seen += os.read(master, 1 << 16)
                    if not told and str(os.getpid()).encode() in seen:
                        told = True
                        if leave == "key":
                            os.write(master, b"q")
                        else:
                            process.send_signal(signal.SIGTERM)
            finally:
                process.kill()
        after = termios.tcgetattr(slave)
    finally:
        os.close(master)
        os.close(slave)

    assert told and process.returncode == 0, seen[-2000:]
    assert after == before
    assert seen.count(ALTERNATE) == seen.count(BACK) == 1 and b"Traceback" not in seen


def test_once_and_json_need_no_terminal(tmp_path):
    with traffic():
        done = subprocess.run([*COMMAND, "top", "--loopback", "--interval", "1", "--json", "--once", "--by", "process"],
                              env=environment(tmp_path), capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr
    (ours,) = [row for row in json.loads(done.stdout)["rows"] if row["pid"] == str(os.getpid())]
    assert ours["read_rate"] > 0 and ours["established"] > 0
