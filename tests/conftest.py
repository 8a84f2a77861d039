"""Settings for all tests."""

import subprocess

import pytest
from hypothesis import settings

# The tests run on busy and on emulated machines: how long an example takes says nothing about the code.
settings.register_profile("kcompat", deadline=None)
settings.load_profile("kcompat")


@pytest.fixture
def mounted(tmp_path):
    """mounted(*mount arguments) -> a mount point, gone after the test; skips where we may not mount."""
    points = []

    def mount(*arguments):
        point = tmp_path / "mnt"
        point.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *arguments, str(point)], capture_output=True, text=True, timeout=20)
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.strip()}")
        points.append(point)
        return point

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", "-l", str(point)], check=True, timeout=20)


@pytest.fixture(autouse=True)
def spool_home(tmp_path, monkeypatch):
    """What waits for a server waits with the test, also where a command is run."""
    monkeypatch.setenv("KCOMPAT_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"
