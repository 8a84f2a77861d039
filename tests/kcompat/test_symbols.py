"""Where functions begin: what nm and objdump of real files say, and one error for whatever is no such file."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcompat.elf import Elf
from kcompat.errors import BadInput
from kcompat.symbols import function_offset

C = "int counted(int a) { return a * 3; } int asked; extern int elsewhere(void); int (*use)(void) = elsewhere;"


@pytest.fixture(scope="module", params=["64 bits", "32 bits"])
def library(request, tmp_path_factory):
    """A shared object whose segments lie elsewhere in the file than in memory."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    path = tmp_path_factory.mktemp("symbols") / "library.so"
    bits = ["-m32", "-nostdlib"] if request.param == "32 bits" else []
    done = subprocess.run(["gcc", "-shared", "-fPIC", *bits, "-Wl,--section-start=.text=0x40000", "-x", "c", "-", "-o",
                           path], input=C, text=True, capture_output=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"gcc cannot: {done.stderr.splitlines()[-1]}")
    return path


def in_file(path, name):
    """As binutils say: the symbol's address, moved as its section is."""
    address = int(re.search(rf"^([0-9a-f]+) T {name}$", output("nm", "-D", path), re.MULTILINE)[1], 16)
    section = r"\.text +[0-9a-f]+ +([0-9a-f]+) +[0-9a-f]+ +([0-9a-f]+)"
    start, at = (int(text, 16) for text in re.search(section, output("objdump", "-h", path)).groups())
    return address - start + at


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def offset(path, name):
    return function_offset(Elf(path.read_bytes(), path), name)


def test_a_function_is_where_binutils_say(library):
    assert offset(library, "counted") == in_file(library, "counted")


def test_what_is_no_function_or_defined_elsewhere_is_none(library):
    assert [offset(library, name) for name in ("asked", "elsewhere", "count", "counted_", "")] == [None] * 5


def test_a_stripped_library_still_has_those_others_may_call(library, tmp_path):
    stripped = tmp_path / "stripped.so"
    subprocess.run(["strip", "-o", stripped, library], check=True, timeout=60)

    assert offset(stripped, "counted") == in_file(library, "counted")


@given(at=st.integers(0, 20_000), junk=st.binary(min_size=1, max_size=40), cut=st.booleans())
def test_any_damage_is_bad_input_or_an_answer(library, at, junk, cut):
    data = bytearray(library.read_bytes())
    at %= len(data)
    data[at:at + len(junk)] = junk
    try:
        found = function_offset(Elf(bytes(data[:at] if cut else data), Path("damaged")), "counted")
    except BadInput:
        return
    assert found is None or isinstance(found, int)
