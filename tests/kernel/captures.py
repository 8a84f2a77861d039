"""What went over a wire, as tshark saw it."""

import subprocess
import time
from contextlib import contextmanager


@contextmanager
def capturing(end, file, what):
    """Into the file what passes this end of a wire meanwhile; `what` is a filter of pcap's."""
    command = end.command("tshark", "-i", "wire", "-f", what, "-w", file, "-q")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tshark:
        try:
            while "Capturing on" not in (line := tshark.stderr.readline()):
                assert line, "tshark ended"
            deadline = time.monotonic() + 20
            while not file.exists() or not file.stat().st_size:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
            time.sleep(1)
        finally:
            tshark.terminate()
            tshark.communicate(timeout=20)


def values(file, field, what, *options):
    """The field's values in all frames that tshark's display filter `what` lets through."""
    done = subprocess.run(["tshark", "-r", file, *options, "-Y", what, "-T", "fields", "-e", field],
                          capture_output=True, text=True, check=True, timeout=60)
    return [value for line in done.stdout.splitlines() for value in line.split(",") if value]
