"""What a missing capability is called, and where a service gets it: never where it is not what is missing."""

import os
import shutil
import subprocess

import pytest

from kcompat.errors import KcompatError
from kcompat.privileges import explained, missing_for_bpf
from tests.kcompat.cli_tools import COMMAND, environment, one_line

FULL, NARROW, OLD_NARROW = "000001ffffffffff", "000000c001083000", "0000000001083000"  # the unit's, and before 5.8
DENIED = PermissionError(1, "Operation not permitted")


@pytest.fixture
def proc(tmp_path):
    """proc(effective, last) -> a directory as /proc is."""
    def made(effective, last):
        (tmp_path / "self").mkdir()
        (tmp_path / "sys/kernel").mkdir(parents=True)
        (tmp_path / "self/status").write_text(f"Name:\tx\nCapPrm:\t{FULL}\nCapEff:\t{effective}\nCapBnd:\t{FULL}\n")
        (tmp_path / "sys/kernel/cap_last_cap").write_text(f"{last}\n")
        return tmp_path

    return made


@pytest.mark.parametrize("effective, last, missing", [
    (FULL, 40, ""), (NARROW, 40, ""), (OLD_NARROW, 37, "CAP_SYS_ADMIN"), ("0", 40, "CAP_BPF")])
def test_what_keeps_programs_out_is_named_with_what_gives_it(proc, effective, last, missing):
    said = missing_for_bpf(proc(effective, last))

    assert said.startswith(f"{missing} is missing: ") if missing else said == ""
    assert ("full.conf" in said) == (missing == "CAP_SYS_ADMIN")


@pytest.mark.parametrize("error, effective, said", [
    (DENIED, NARROW, "Operation not permitted: CAP_SYS_ADMIN is missing: "), (DENIED, FULL, "Operation not permitted"),
    (OSError(2, "No such file"), NARROW, "No such file"), (KcompatError("no readline"), NARROW, "no readline")])
def test_a_refusal_is_explained_only_by_a_capability_that_is_missing(proc, error, effective, said):
    told = explained(error, proc(effective, 40))

    assert told.startswith(said) and ("full.conf" in told) == said.endswith("missing: ")


def test_without_a_proc_nothing_is_claimed(tmp_path):
    assert missing_for_bpf(tmp_path) == "" and explained(DENIED, tmp_path) == "Operation not permitted"


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="not root, or no setpriv")
def test_a_collector_that_may_load_nothing_says_what_it_needs(tmp_path):
    done = subprocess.run(["setpriv", "--bounding-set", "-sys_admin,-bpf", *COMMAND, "collect", "--duration", "1"],
                          env=environment(tmp_path), cwd="/", capture_output=True, text=True, timeout=60)

    assert done.returncode == 3
    assert "CAP_BPF is missing: the systemd unit has it, a container by" in one_line(done.stderr)
