"""`make run`: the first time it guesses, the second time it remembers, and it leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kcompat.fields import CATALOGUE

ROOT = Path(__file__).parents[2]


def demo(home):
    """One run: its exit status, what it printed, what it said, the namespaces it left."""
    environment = os.environ | {"KCOMPAT_DEMO_DB": str(home / "offsets.db")}
    with subprocess.Popen([sys.executable, "-m", "ci.demo"], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=environment) as running:
        try:
            out, err = running.communicate(timeout=180)
        finally:
            running.kill()
    there = subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True, timeout=10).stdout
    return running.returncode, out, err, re.findall(rf"kcompat-demo-\w+-{running.pid}\b", there)


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_the_demonstration_guesses_then_remembers(tmp_path):
    # msg_iter is seen by kprobes alone.
    fewest = len(CATALOGUE) - 1
    for told in (r"the guess(; 1 unknown)?; recorded in", r"the database(, \d+ of them|,) verified by one event"):
        status, out, err, left = demo(tmp_path)

        assert status == 0 and "Traceback" not in err, out + err
        assert "WRONG" not in out and "netflow,direction=outgoing," in out
        assert all(field.name in out for field in CATALOGUE)
        counted = re.search(rf"(\d+) fields from {told}", err)
        assert counted and int(counted[1]) >= fewest, err
        assert left == []
