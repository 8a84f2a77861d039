"""Where functions begin: what nm and objdump of real files say, and one error for whatever is no such file."""

import os
import re
import shutil
import struct
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcompat.elf import Elf
from kcompat.errors import BadInput, Missing
from kcompat.foreign_file import ForeignFile
from kcompat.symbols import function_offset
from tests.kcompat.elf_builder import elf, library, with_section

C = "int counted(int a) { return a * 3; } int asked; extern int elsewhere(void); int (*use)(void) = elsewhere;"


@pytest.fixture(scope="module", params=["64 bits", "32 bits"])
def made(request, tmp_path_factory):
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


def test_a_function_is_where_binutils_say(made):
    assert offset(made, "counted") == in_file(made, "counted")


def test_what_is_no_function_or_defined_elsewhere_is_none(made):
    assert [offset(made, name) for name in ("asked", "elsewhere", "count", "counted_", "")] == [None] * 5


def test_a_stripped_library_still_has_those_others_may_call(made, tmp_path):
    stripped = tmp_path / "stripped.so"
    subprocess.run(["strip", "-o", stripped, made], check=True, timeout=60)

    assert offset(stripped, "counted") == in_file(made, "counted")


@given(at=st.integers(0, 20_000), junk=st.binary(min_size=1, max_size=40), cut=st.booleans())
def test_any_damage_is_bad_input_or_an_answer(made, at, junk, cut):
    data = bytearray(made.read_bytes())
    at %= len(data)
    data[at:at + len(junk)] = junk
    try:
        found = function_offset(Elf(bytes(data[:at] if cut else data), Path("damaged")), "counted")
    except BadInput:
        return
    assert found is None or isinstance(found, int)


HOLE = 1 << 27
DYNSTR, DYNSYM = 1, 2


def foreign(path, data, size=None):
    """The file as it is read when anybody may have made it; a hole where `size` is more than it holds."""
    path.write_bytes(data)
    if size:
        os.truncate(path, size)
    return ForeignFile(path)


@pytest.mark.parametrize("offset", [(1 << 64) - 1, 1 << 63, 1 << 20])
def test_a_place_past_the_end_of_the_file_is_bad_input(tmp_path, offset):
    path = tmp_path / "library.so"
    with foreign(path, library(["f"], 0x10, [(offset, 0, 0x100)])) as data, pytest.raises(BadInput, match="past its"):
        function_offset(Elf(data, path), "f")


def test_a_place_is_told_as_ever_of_a_foreign_file(tmp_path):
    path = tmp_path / "library.so"
    with foreign(path, library(["f", "g"], 0x1010, [(0x40, 0x1000, 0x100)])) as data:
        assert function_offset(Elf(data, path), "g") == 0x50


@pytest.mark.parametrize("section", [DYNSTR, DYNSYM])
def test_a_table_that_is_a_hole_takes_no_memory(tmp_path, section):
    path = tmp_path / "library.so"
    whole = library(["f"])
    tracemalloc.start()
    try:
        with foreign(path, with_section(whole, section, len(whole), HOLE), len(whole) + HOLE) as data, \
                pytest.raises(BadInput, match=f"{path}: {HOLE} bytes"):
            function_offset(Elf(data, path), "f")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_names_that_end_nowhere_are_not_read_to_their_end_with_every_symbol(tmp_path):
    path = tmp_path / "library.so"
    names, symbols = b"\0" + b"x" * (1 << 20), struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 0x10, 0) * 20_000
    whole = elf([(".dynstr", 3, 0, names), (".dynsym", 11, 0, symbols, 1)])
    begun_s = time.process_time()
    with foreign(path, whole) as data:
        assert function_offset(Elf(data, path), "f") is None
    assert time.process_time() - begun_s < 1


def test_a_file_made_shorter_while_it_is_read_is_bad_input(tmp_path):
    """A mapping of it would end the process."""
    path = tmp_path / "library.so"
    with foreign(path, library(["f"])) as data:
        os.truncate(path, 100)
        with pytest.raises(BadInput, match="shorter"):
            function_offset(Elf(data, path), "f")


def test_what_is_no_file_is_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, error in ((tmp_path / "pipe", BadInput), (tmp_path, BadInput), (tmp_path / "none", Missing)):
        with pytest.raises(error, match=str(path)):
            ForeignFile(path)


def test_more_sections_than_any_file_has_are_bad_input(tmp_path):
    """Their number is in section 0 then, and they lie in a hole."""
    path = tmp_path / "library.so"
    whole, count = bytearray(library(["f"])), 1 << 19
    table, = struct.unpack_from("<Q", whole, 40)
    struct.pack_into("<H", whole, 60, 0)
    struct.pack_into("<Q", whole, table + 32, count)
    with foreign(path, bytes(whole), table + 64 * count) as data, pytest.raises(BadInput, match="section headers"):
        Elf(data, path)
