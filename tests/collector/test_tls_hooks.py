"""Where the TLS libraries of this machine are hooked, beside what objdump says stands there."""

import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from collector import tls_hooks
from collector.tls_hooks import FUNCTIONS, PROGRAMS, RETURN, hooks_in
from kcompat import probe_sites
from kcompat.elf import Elf, open_file
from kcompat.probe_sites import is_emulated
from kcompat.symbols import Function, exported_functions


def library(name):
    found = sorted(Path("/usr/lib").glob(f"*/{name}.so.*"))
    if not found:
        pytest.skip(f"no {name} here")
    return Elf(open_file(found[0]), found[0])


@pytest.fixture(params=["libssl", "libgnutls"])
def elf(request):
    return library(request.param)


def test_every_function_of_a_library_is_seen_once(elf):
    seen = [name for hook in hooks_in(elf) for name in hook.functions]

    assert sorted(seen) == sorted(exported_functions(elf, FUNCTIONS))


def test_beginnings_come_after_ends_and_all_are_programs(elf):
    hooks = hooks_in(elf)

    assert len({hook.at for hook in hooks}) == len(hooks)
    assert {program for hook in hooks for program in hook.programs} <= PROGRAMS
    assert all(hook.programs[-1] != RETURN for hook in hooks)


def test_an_instruction_begins_wherever_a_hook_is(elf):
    if elf.machine != probe_sites.MACHINE or not shutil.which("objdump"):
        pytest.skip("no objdump, or another machine")
    for hook in hooks_in(elf):
        # In these libraries code lies in the file where it will in memory.
        told = subprocess.run(["objdump", "-d", "-F", f"--start-address={hook.at:#x}",
                               f"--stop-address={hook.at + 16:#x}", elf.path], check=True, capture_output=True,
                              text=True, timeout=60).stdout
        first = re.search(rf"^ +{hook.at:x}:\t((?:[0-9a-f]{{2}} )+)", told, re.MULTILINE)
        assert first is not None
        assert bytes.fromhex(first[1]) == elf.data[hook.at:hook.at + len(bytes.fromhex(first[1]))]


def test_openssl_reads_and_writes_where_no_copy_is_stepped_through():
    elf = library("libssl")
    if elf.machine != probe_sites.MACHINE:
        pytest.skip("another machine")
    busy = [hook for hook in hooks_in(elf) if {"SSL_read", "SSL_write"} & set(hook.functions)]

    assert len(busy) == 2
    assert all(is_emulated(elf.data[hook.at:hook.at + 16]) for hook in busy)


def test_a_function_said_to_be_as_long_as_its_file_is_not_read_through(monkeypatch):
    elf = library("libssl")
    functions = {name: found._replace(size=len(elf.data)) for name, found in exported_functions(elf, FUNCTIONS).items()}
    monkeypatch.setattr(tls_hooks, "exported_functions", lambda *_: functions)
    begun_s = time.process_time()

    assert {hook.at for hook in hooks_in(elf)} == {found.at for found in functions.values()}
    assert time.process_time() - begun_s < 1


def test_what_is_longer_than_any_wrapper_is_not_taken_for_one(monkeypatch):
    """Calls to elsewhere, each of which has to be followed to where its result is set: never."""
    code = b"\xe8\0\0\1\0\x53" * 680
    elf = SimpleNamespace(machine=probe_sites.MACHINE, data=code, sections=[])
    monkeypatch.setattr(tls_hooks, "exported_functions", lambda *_: {
        name: Function(0, len(code)) for name in ("SSL_write", "SSL_write_ex", "SSL_read")})
    read = []
    monkeypatch.setattr(probe_sites, "inner", lambda code, *_: read.append(len(code)))
    monkeypatch.setattr(probe_sites, "leaves", lambda code, *_: read.append(len(code)))

    assert len(hooks_in(elf)) == 3 and not read


def test_all_writes_of_openssl_3_3_are_seen_at_the_one_place_that_does_them(tmp_path):
    """ssl/ssl_lib.c since then: each goes through a function that has the flags of SSL_write_ex2 before the count."""
    elf = built(tmp_path, """
        #include <stddef.h>
        #include <stdint.h>
        extern int sent(void *s, const void *data, size_t size, uint64_t flags, size_t *count);
        __attribute__((noinline))
        static int inner(void *s, const void *data, size_t size, uint64_t flags, size_t *count)
        {
            return s ? sent(s, data, size, flags, count) : -1;
        }
        int SSL_write(void *s, const void *data, int size)
        {
            size_t count;
            int done;
            if (size < 0)
                return -1;
            done = inner(s, data, size, 0, &count);
            return done > 0 ? (int)count : done;
        }
        int SSL_write_ex2(void *s, const void *data, size_t size, uint64_t flags, size_t *count)
        {
            int done = inner(s, data, size, flags, count);
            return done < 0 ? 0 : done;
        }
        int SSL_write_ex(void *s, const void *data, size_t size, size_t *count)
        {
            int done = inner(s, data, size, 0, count);
            return done < 0 ? 0 : done;
        }
        """)
    hooks = hooks_in(elf)

    if elf.machine == probe_sites.MACHINE:
        assert [(hook.programs, set(hook.functions)) for hook in hooks] == [
            ((RETURN, "uprobe__tls_write_flags"), {"SSL_write", "SSL_write_ex", "SSL_write_ex2"})]
    else:
        assert {hook.functions: hook.programs[-1] for hook in hooks} == {
            ("SSL_write",): "uprobe__tls_write", ("SSL_write_ex",): "uprobe__tls_write_ex",
            ("SSL_write_ex2",): "uprobe__tls_write_flags"}


def built(tmp_path, text):
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    made = tmp_path / "made.so"
    subprocess.run(["gcc", "-O2", "-fPIC", "-shared", "-x", "c", "-", "-o", made], input=text, text=True, check=True,
                   timeout=60)
    return Elf(open_file(made), made)


def test_what_is_no_tls_library_has_none(tmp_path):
    assert hooks_in(built(tmp_path, "int SSL_reader(void) { return 1; }")) == []
