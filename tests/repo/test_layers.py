"""The layers of the design hold, and would be missed: a wrong import makes import-linter fail."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kcompat", "guessers", "offset_db", "collector", "ci")


def lint(directory):
    """import-linter's exit status and words, run as `make lint` runs it."""
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=directory, text=True,
                          capture_output=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Our packages, to break."""
    directory = tmp_path_factory.mktemp("layers")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    return directory


def test_the_contracts_are_kept():
    status, words = lint(ROOT)

    assert status == 0, words


@pytest.mark.parametrize("module, wrong", [
    ("kcompat/engine.py", "import guessers.guess"),
    ("kcompat/probe.py", "from collector import pipeline"),
    ("kcompat/kernel.py", "from offset_db.db import Database"),
    ("guessers/search.py", "from offset_db.db import Database"),
    ("offset_db/rows.py", "import guessers.search"),
    ("guessers/verdicts.py", "from collector.exclusions import Exclusions"),
    ("offset_db/trust.py", "from kcompat.cli_output import emit"),
    ("collector/flows.py", "import kcompat.cli"),
    ("ci/console.py", "from kcompat.errors import KcompatError"),
    ("collector/record.py", "import ci.console"),
    ("guessers/memory.py", "import bcc"),
    ("kcompat/load.py", "from bcc import lib"),
    ("kcompat/cli_database.py", "import sqlite3"),
    ("collector/config.py", "import sqlite_utils"),
])
def test_a_wrong_import_is_found(copy, module, wrong):
    path = copy / module
    before = path.read_text()
    first = next(i for i, line in enumerate(before.splitlines()) if line.startswith("from __future__"))
    lines = before.splitlines(keepends=True)
    path.write_text("".join([*lines[:first + 1], f"{wrong}\n", *lines[first + 1:]]))
    try:
        status, words = lint(copy)
    finally:
        path.write_text(before)

    assert status == 1 and "BROKEN" in words, words


def test_only_the_command_imports_the_command():
    """Within kcompat import-linter is told of no order; this is the one that matters."""
    importers = {path.name for path in (ROOT / "kcompat").glob("*.py") for name in imported(path)
                 if name.startswith("kcompat.cli")}

    assert importers and all(name.startswith("cli") for name in importers)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
