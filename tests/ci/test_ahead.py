"""What is compiled ahead arrives in the guest as it was, and what cannot be made is said and left to the guest."""

import os
import subprocess
from pathlib import Path

import pytest

from ci.ahead import GUEST_CACHE, compiled
from ci.job import Job, guest_script
from ci.product import ProductError, kcompat


def test_files_are_unpacked_as_they_were(tmp_path):
    files = {f"{tmp_path}/a/one": b"\0\xffEND\n" * 999, f"{tmp_path}/two": b""}
    script = guest_script(Job(("true",), tmp_path, 1.0, files=files), "nonce", f"{tmp_path}/port")
    unpacking = script[script.index("base64"):script.index("\nEND\n") + 5]
    subprocess.run(["sh", "-eu"], input=unpacking.encode(), check=True, timeout=60)
    assert {path: Path(path).read_bytes() for path in files} == files


def test_no_files_no_unpacking():
    assert "base64" not in guest_script(Job(("true",), "/", 1.0), "nonce", "/dev/null")


def test_an_image_that_is_none_is_left_to_the_guest_and_said(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("bcc compiles for root only")
    pytest.importorskip("bcc")
    (tmp_path / "vmlinuz").write_bytes(b"garbage")
    ahead = compiled(tmp_path / "vmlinuz", "x86_64", tmp_path / "cache")
    # The guess's program, bash's and the tests' need no offsets.
    assert len([path for path in ahead.files if path.startswith(f"{GUEST_CACHE}/bpf/")]) == 3
    assert ahead.seconds > 0


def test_what_cannot_be_written_is_a_note(tmp_path):
    (tmp_path / "cache").write_text("")
    ahead = compiled(tmp_path / "vmlinuz", "x86_64", tmp_path / "cache")
    assert ahead.files == {}
    assert ahead.notes and all(note.startswith("not compiled ahead: ") for note in ahead.notes)


def test_the_product_is_given_an_environment(tmp_path):
    with pytest.raises(ProductError):
        kcompat("compile", environment={"KCOMPAT_CACHE": "/proc/nowhere", "XDG_DATA_HOME": str(tmp_path)})
