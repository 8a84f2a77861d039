"""`make run`: the first time it guesses, the second time it remembers, and it leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kcompat.fields import CATALOGUE

ROOT = Path(__file__).parents[2]


def demo(home):
    return subprocess.run([sys.executable, "-m", "ci.demo"], cwd=ROOT, text=True, capture_output=True, timeout=180,
                          env=os.environ | {"KCOMPAT_DEMO_DB": str(home / "offsets.db")})


def namespaces():
    return subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True, timeout=10).stdout


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_the_demonstration_guesses_then_remembers(tmp_path):
    before = namespaces()

    first, second = demo(tmp_path), demo(tmp_path)

    for done in (first, second):
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
        assert "WRONG" not in done.stdout and "netflow,direction=outgoing," in done.stdout
        assert all(field.name in done.stdout for field in CATALOGUE)
    assert f"{len(CATALOGUE)} fields from the guess; recorded in" in first.stderr
    assert f"{len(CATALOGUE)} fields from the database, verified by one event" in second.stderr
    assert namespaces() == before
