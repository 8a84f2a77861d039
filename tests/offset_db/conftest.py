"""Real files and real processes: what the tests of the memory stand on."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db.db import Database

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "offsets.db"


@pytest.fixture
def db(path):
    with Database.open(path) as opened:
        yield opened


@pytest.fixture
def kernel():
    return Kernel("ab" * 20, "6.1.0-test", "Linux version 6.1.0-test", "x86_64")


@pytest.fixture
def answers():
    return [Offset.known(field, 8 * n, "btf", evidence={"type_id": n}) for n, field in enumerate(CATALOGUE)]


@pytest.fixture
def recorded(path, kernel, answers):
    """The path of a closed database that holds `answers` for `kernel`."""
    with Database.open(path) as opened:
        opened.record(kernel, answers)
    return path


@pytest.fixture
def start_writer():
    """start_writer(path, source, kernel number...) -> a process that prints one line per committed record."""
    with contextlib.ExitStack() as stack:
        def start(path, source, numbers):
            command = [sys.executable, str(Path(__file__).with_name("writer.py")), str(path), source, numbers]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                                     env=os.environ | {"PYTHONPATH": str(ROOT)})
            stack.callback(child.stdout.close)
            stack.callback(child.wait)
            stack.callback(child.kill)
            return child

        yield start
