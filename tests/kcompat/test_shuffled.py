"""In memory; files of compilers are in test_dwarf.py and tests/offset_db/test_harvest_files.py."""

from pathlib import Path

import pytest

from kcompat import dwarf, shuffled
from kcompat.elf import Elf
from kcompat.fields import find
from kcompat.layout import Member, Scalar, Struct
from kcompat.offsets import State
from tests.kcompat.elf_builder import elf

POINTER, NOBITS, BYTES = Scalar(8), 8, 1
GCC, CLANG = b"Linux version 6.12 (gcc 12.2.0) \0", b"Linux version 6.12 (clang version 16) \0"
MAGIC = b"6.12 SMP RANDSTRUCT_e0bc614e4fd035a4\0"
FILES = Member("files", 64, POINTER)
IN_ORDER = Struct("task_struct", 16, (Member("stack", 0, POINTER), FILES))
SHUFFLED = Struct("task_struct", 16, (Member("stack", 0, POINTER), Member("", 64, Struct("", 8, (FILES,)))))
DADDR = find("skc_daddr")
SOCK_COMMON = Struct("sock_common", 4, (Member("skc_daddr", 0, Scalar(4)),))


def told(*sections):
    data = elf([*sections, (".debug_info", BYTES, 0, b"x")])
    return Elf(data, Path("vmlinux")), data


def rodata(data):
    return ".rodata", BYTES, 2, data


@pytest.mark.parametrize(("strings", "shuffles"), [
    (GCC + MAGIC, True), (CLANG + MAGIC, False), (GCC, False), (b"", False)])
def test_a_kernel_says_so_itself(strings, shuffles):
    assert shuffled.by_gcc(*told(rodata(strings))) == shuffles


@pytest.mark.parametrize(("task", "known"), [
    (IN_ORDER, True), (SHUFFLED, False), (Struct("task_struct", 0, None), False), (None, False)])
@pytest.mark.parametrize("sections", [
    [(".rodata", NOBITS, 2, b"")], [(".text", BYTES, 6, b"x"), (".modinfo", NOBITS, 2, b"")]])
def test_what_was_kept_apart_is_known_by_the_order_of_a_struct(monkeypatch, task, known, sections):
    found = {"sock_common": SOCK_COMMON} | ({"task_struct": task} if task else {})
    monkeypatch.setattr(dwarf, "_opened", lambda path: told(*sections))
    monkeypatch.setattr(dwarf, "_search", lambda elf, names: {n: found[n] for n in names if n in found})
    answer, = dwarf.DwarfResolver(Path("vmlinux")).resolve(None, [DADDR])
    assert (answer.state is State.KNOWN) == known
    assert known or answer.reason == shuffled.UNTOLD


def test_of_what_has_its_bytes_nothing_more_is_asked(monkeypatch):
    monkeypatch.setattr(dwarf, "_opened", lambda path: told(rodata(GCC), (".bss", NOBITS, 3, b"")))
    monkeypatch.setattr(dwarf, "_search", lambda elf, names: dict.fromkeys(names, SOCK_COMMON))
    monkeypatch.setattr(shuffled, "is_in_order", lambda task: pytest.fail("asked"))
    answer, = dwarf.DwarfResolver(Path("vmlinux")).resolve(None, [DADDR])
    assert answer.offset == 0
