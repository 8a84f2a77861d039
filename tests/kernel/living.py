"""Looks at a running collector from outside: how it says it is, what it has written, what it holds in the kernel."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.kcompat.cli_tools import kcompat


def status(home):
    """What `kcompat status --json` says, once there is something to say."""
    return until(lambda: kcompat("status", "--json", home=home), lambda done: done.stdout and json.loads(done.stdout))


def until(get, good, timeout_s=60):
    """The first good thing; whatever `good` makes of it."""
    deadline = time.monotonic() + timeout_s
    while True:
        got = get()
        if made := good(got):
            return made
        assert time.monotonic() < deadline, got
        time.sleep(0.1)


def written(path, port):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return sum(r["fields"]["bytes_written"] for r in records if r["tags"].get("dst_port") == str(port)
               and r["tags"]["direction"] == "outgoing")


def programs_of(pid):
    """The BPF programs a process holds, by the kernel's numbers, which are never given twice."""
    told = " ".join(path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir())
    return set(map(int, re.findall(r"prog_id:\s+(\d+)", told)))


def programs():
    """All there are; others' come and go."""
    said = subprocess.run(["bpftool", "prog", "list", "--json"], capture_output=True, text=True, timeout=60)
    if said.returncode:
        pytest.skip(f"no bpftool here: {said.stderr}")
    return {one["id"] for one in json.loads(said.stdout or "[]")}
