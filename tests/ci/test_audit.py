"""The audit of dependencies fails for a vulnerability, says what nobody could tell, and needs no network to pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ci.audit import asked, judged, main, shipped

ROOT = Path(__file__).parents[2]


def package(name, *flaws, **more):
    return {"name": name, "version": "1.0", "vulns": [{"id": flaw, "fix_versions": ["1.1"]} for flaw in flaws]} | more


def test_a_vulnerability_is_a_fault():
    verdict = judged({"dependencies": [package("good"), package("bad", "PYSEC-1", "GHSA-2")]})
    assert verdict.faults == ("bad 1.0: PYSEC-1, mended in 1.1", "bad 1.0: GHSA-2, mended in 1.1")
    assert verdict.words == "2 of 2 packages audited, 2 known vulnerabilities"


def test_what_could_not_be_told_is_not_called_sound():
    verdict = judged({"dependencies": [package("good"), {"name": "odd", "skip_reason": "not found"}]})
    assert verdict == ((), "1 of 2 packages audited, 0 known vulnerabilities; nobody here knows of 1")


def test_what_ships_is_audited_and_what_developers_have_is_not():
    found = dict(shipped())
    assert {"click", "httpx", "pydantic", "pydantic-core", "anyio"} <= found.keys()
    assert not {"kcompat", "pytest", "mypy", "ruff", "playwright"} & found.keys()


def test_without_network_it_says_so_and_passes():
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-m", "ci.audit"], cwd=ROOT, env=os.environ | nowhere, capture_output=True,
                          text=True, timeout=200)
    assert done.returncode == 0 and "audit: nothing was audited: " in done.stdout, done.stderr


@pytest.mark.parametrize(("said", "status"), [('{"dependencies": []}', 0), ("no JSON", 0), (
    '{"dependencies": [{"name": "bad", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}]}', 1)])
def test_whatever_pip_audit_says_is_understood(tmp_path, monkeypatch, capsys, said, status):
    tool = tmp_path / "pip-audit"
    tool.write_text(f"#!/bin/sh\necho '{said}'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main() == status
    assert capsys.readouterr().out.startswith("audit: ")


def test_without_the_tool_nothing_is_audited(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert asked({"click": "8.1.7"}).words.startswith("nothing was audited: ")
