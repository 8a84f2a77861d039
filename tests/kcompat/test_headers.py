"""The header stubs serve both machines: the same C reads its first argument where each ABI puts it."""

import os

import pytest

from guessers import memory
from kcompat import bpf

LDX_DW = 0x79
# Where struct pt_regs keeps the first argument of a function: x86_64's di, arm64's regs[0].
FIRST_ARGUMENT = {"x86_64": 112, "aarch64": 0}


@pytest.fixture(params=sorted(FIRST_ARGUMENT))
def machine(request):
    if os.geteuid() != 0:
        pytest.skip("bcc makes the maps while it compiles, which needs root")
    return request.param


def test_programs_compile_and_read_the_registers_of_the_machine(machine):
    compiled = bpf.compile_source(memory.source(machine), machine)
    code = next(p for p in compiled.programs if p.name == "kprobe__getsockopt").instructions
    loads = {int.from_bytes(code[at + 2:at + 4], "little", signed=True)
             for at in range(0, len(code), 8) if code[at] == LDX_DW}
    assert FIRST_ARGUMENT[machine] in loads
    assert (FIRST_ARGUMENT["x86_64"] in loads) == (machine == "x86_64")


def test_every_header_names_its_license():
    for header in bpf.HEADERS.rglob("*.h"):
        assert "SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)" in header.read_text(), header
