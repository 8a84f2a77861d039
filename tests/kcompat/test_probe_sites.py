"""Where uprobes are cheap: on code that gcc makes here, on code written to mislead, and on any bytes at all."""

import platform
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcompat.elf import Elf
from kcompat.probe_sites import inner, is_emulated, leaves, nearest
from kcompat.symbols import exported_functions

BASE = 0x1000
PUSH, ENDBR, NOP, RET = b"\x55", b"\xf3\x0f\x1e\xfa", b"\x90", b"\xc3"
SUB_RSP, XOR_ECX, ESI_IS_23, TEST_EDI = b"\x48\x83\xec\x18", b"\x31\xc9", b"\xbe\x17\0\0\0", b"\x85\xff"
JUMP_OUT, JE_5 = b"\xe9\0\x10\0\0", b"\x74\x05"

# What OpenSSL's SSL_read is to its ssl_read_internal.
WRAPPER = """
extern int work(void *session, void *buffer, unsigned long size, {flags} unsigned long *moved);
extern void failed(int why, ...);
int wrapper(void *session, void *buffer, int size)
{{
    unsigned long moved;
    int done;
    if (size < 0) {{
        failed(7);
        return {failure};
    }}
    done = work(session, buffer, size, {zero} &moved);
    {more}
    if (done > 0)
        done = (int)moved;
    return done;
}}
"""
WORK = """
.text
.globl work
.hidden work
.type work, @function
work:
    push %rbx
    pop %rbx
    ret
.size work, . - work
"""


def compiled(tmp_path, source, *options):
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    (tmp_path / "wrapper.c").write_text(source)
    (tmp_path / "work.s").write_text(WORK)
    path = tmp_path / "library.so"
    sources = tmp_path / "wrapper.c", tmp_path / "work.s"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", *options, *sources, "-o", path], check=True, timeout=60)
    elf = Elf(path.read_bytes(), path)
    if elf.machine != 62:
        pytest.skip("not x86-64")
    work = int(subprocess.run(f"nm {path} | grep ' work$'", shell=True, check=True, capture_output=True, text=True,
                              timeout=60).stdout.split()[0], 16)
    return elf, exported_functions(elf, ["wrapper"])["wrapper"], work


def inner_of(elf, function):
    tables = [range(s.offset, s.offset + s.size) for s in elf.sections if s.name.startswith(".plt")]
    code = elf.data[function.at:function.at + function.size]
    return inner(code, function.at, lambda at: any(at in table for table in tables))


def wrapper(flags="", failure="-1", zero="", more=""):
    return WRAPPER.format(flags=flags, failure=failure, zero=zero, more=more).replace(
        "extern int work", '__attribute__((visibility("hidden"))) extern int work')


@pytest.mark.parametrize(("code", "arguments", "found"), [
    (PUSH + RET, (1, 2), 0),
    (ENDBR + PUSH + RET, (1, 2), 4),
    (b"\x41\x57" + RET, (1, 2), 0),
    (XOR_ECX + JUMP_OUT, (1, 2), 2),
    (TEST_EDI + JE_5 + RET, (1,), 2),
    (XOR_ECX + JUMP_OUT, (1, 2, 4), None),
    (ESI_IS_23 + JUMP_OUT, (1, 2), None),
    (ESI_IS_23 + JUMP_OUT, (1,), 5),
    (SUB_RSP + JUMP_OUT, (1,), None),
    (XOR_ECX + RET + PUSH, (1,), None),
    (b"\x40\x30\xff" + PUSH, (1,), None),  # xor %dil,%dil
    (b"\xb1\x01" + PUSH, (1, 2, 4), None),  # mov $1,%cl
    (NOP, (1,), 0),
    (b"\x66\x90" + PUSH, (1,), 2),
    (b"", (1,), None),
])
def test_the_nearest_place_is_where_all_is_as_the_caller_left_it(code, arguments, found):
    assert nearest(code, BASE, arguments) == (None if found is None else BASE + found)


def test_a_place_that_a_loop_leads_back_to_is_none():
    back = TEST_EDI + b"\x55" + b"\xeb\xfd"  # jmp to the push
    assert nearest(TEST_EDI + PUSH, BASE, (1,)) == BASE + 2
    assert nearest(back, BASE, (1,)) is None


def test_what_the_kernel_emulates_has_no_prefix():
    assert is_emulated(b"\xe8\0\0\0\0")
    assert is_emulated(b"\x0f\x84\0\0\0\0")
    others = b"\x66\x90", b"\x66\xe8\0\0", ENDBR, RET, b"\x41\x90", SUB_RSP, b"\xff\xd0", b"\x0f"
    assert not any(map(is_emulated, others))


@pytest.mark.parametrize("options", [(), ("-fstack-protector-all",), ("-fcf-protection=full",)])
@pytest.mark.parametrize(("source", "argument"), [
    (wrapper(), 4), (wrapper(flags="unsigned long flags,", zero="0,"), 5)])
def test_who_wraps_another_is_seen_through(tmp_path, source, argument, options):
    elf, function, work = compiled(tmp_path, source, *options)

    found = inner_of(elf, function)
    assert found is not None, subprocess.run(["objdump", "-d", elf.path], capture_output=True, text=True).stdout
    assert found == (work, argument)


@pytest.mark.parametrize("source", [
    wrapper(failure="1"),
    wrapper(more="work(session, buffer, size, &moved);"),
    wrapper(more="moved = 3;"),
    wrapper().replace("failed(7);\n        return", "return ((int (*)(void *))buffer)(session) +"),
    wrapper().replace("work(session, buffer,", "work(session, (char *)buffer + 8,"),
    wrapper().replace("work(session, buffer,", "work(buffer, session,"),
    wrapper().replace("extern void failed(int why, ...);", "extern int failed(int why, ...);").replace(
        "failed(7);\n        return -1;", "return failed(7);"),
    wrapper().replace("failed(7);\n        return -1;", "return failed(7, session, buffer), 5;"),
    wrapper().replace("unsigned long moved;", "static unsigned long moved;"),
])
def test_who_does_more_than_to_wrap_is_not(tmp_path, source):
    elf, function, _ = compiled(tmp_path, source)

    assert inner_of(elf, function) is None


def test_where_a_function_leads():
    assert leaves(b"\xe8\0\x10\0\0" + b"\xeb\x00" + RET, BASE) == {BASE + 5 + 0x1000}
    assert leaves(RET, BASE) == set()
    assert leaves(b"\xff\xe0", BASE) is None


@given(code=st.binary(max_size=80), arguments=st.lists(st.integers(1, 5), max_size=5))
def test_any_bytes_have_an_answer(code, arguments):
    found = nearest(code, BASE, arguments)
    assert found is None or is_emulated(code[found - BASE:])
    assert inner(code, BASE, lambda at: at % 2 == 0) is None or len(code) > 10
    leaves(code, BASE)


def test_preparing_imports_the_disassembler_and_nothing_else_does():
    said = subprocess.run([sys.executable, "-c", """
import sys
from collector import pipeline
before = "capstone" in sys.modules
from kcompat import probe_sites
probe_sites.prepare()
print(before, "capstone" in sys.modules, probe_sites._disassembler.cache_info().currsize)"""],
                          capture_output=True, text=True, check=True)
    is_here = platform.machine() == "x86_64"
    assert said.stdout == f"False {is_here} {int(is_here)}\n"
