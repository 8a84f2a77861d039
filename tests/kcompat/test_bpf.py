import json
import logging
import os
import re
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcompat import bpf, cli_errors
from kcompat.bpf import HEADERS, Object, ObjectProgram, cache_dir, compile_cached, compile_source
from kcompat.errors import KcompatError, Missing
from kcompat.maps import MapSpec

names = st.from_regex(r"[a-z_][a-z0-9_]{0,30}", fullmatch=True)
programs = st.builds(ObjectProgram, names, st.binary(max_size=64).map(lambda raw: raw[:len(raw) // 8 * 8]),
                     st.lists(st.tuples(st.integers(0, 9), names), max_size=3).map(tuple))
maps = st.builds(MapSpec, names, *[st.integers(0, 2**31)] * 5)
objects = st.builds(Object, st.lists(programs, max_size=3).map(tuple), st.lists(maps, max_size=3).map(tuple), names)
SMALL = Object((ObjectProgram("kprobe__x", bytes(16), ((0, "seen"),)),), (MapSpec("seen", 1, 4, 8, 10),), "GPL")
SOURCE = """
#include <uapi/linux/ptrace.h>
BPF_HASH(seen, u32, u64, 77);
BPF_ARRAY(total, u64, 3);
int kprobe__both(struct pt_regs *ctx) {
    u32 key = 1;
    u64 one = 1;
    seen.update(&key, &one);
    total.increment(2);
    return 0;
}
int rawtp__none(void *ctx) { return 0; }
"""


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """What was compiled, by a compiler that always makes the same of it, with a cache of its own."""
    monkeypatch.setenv("KCOMPAT_CACHE", str(tmp_path))
    done = []
    monkeypatch.setattr(bpf, "compile_source", lambda source, machine: done.append((source, machine)) or SMALL)
    return done


@pytest.fixture(scope="module")
def compiler():
    """bcc makes the maps while it compiles, so compiling needs root."""
    if os.geteuid() != 0:
        pytest.skip("bcc compiles for root only")
    pytest.importorskip("bcc")
    return compile_source


def cached_files():
    return sorted(p for p in cache_dir().iterdir())


def descriptors():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@given(objects)
def test_what_is_dumped_is_parsed_back(made):
    assert Object.parse(made.dump()) == made


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"programs": 3, "maps": [], "license": "GPL"}',
                                  '{"programs": [{"name": "x"}], "maps": [], "license": "GPL"}',
                                  '{"programs": [], "maps": [{"name": "x", "colour": 3}], "license": "GPL"}',
                                  SMALL.dump()[:-9], SMALL.dump().replace("00", "zz", 1)])
def test_anything_else_is_refused(text):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Object.parse(text)


def test_the_second_time_comes_from_the_cache(compilations):
    assert compile_cached("int x;") == (SMALL, False)
    assert compile_cached("int x;") == (SMALL, True)
    assert compilations == [("int x;", None)]


def test_another_source_or_machine_is_another_program(compilations):
    for source, machine in (("int x;", "x86_64"), ("int y;", "x86_64"), ("int x;", "aarch64")):
        assert compile_cached(source, machine=machine)[1] is False
    assert len(cached_files()) == 3


def test_other_headers_make_another_program(compilations, monkeypatch):
    compile_cached("int x;")
    monkeypatch.setattr(bpf, "_headers_hash", lambda: "changed")
    assert compile_cached("int x;")[1] is False


def test_without_the_cache_nothing_is_read_or_written(compilations):
    compile_cached("int x;", use_cache=False)
    compile_cached("int x;", use_cache=False)
    assert len(compilations) == 2
    assert not cache_dir().exists()


@pytest.mark.parametrize("damage", [lambda t: "", lambda t: t[:len(t) // 2], lambda t: "\x00" * len(t), lambda t: "{}"])
def test_a_damaged_entry_is_compiled_again_and_mended(compilations, damage, caplog):
    compile_cached("int x;")
    [path] = cached_files()
    path.write_text(damage(path.read_text()))
    assert compile_cached("int x;") == (SMALL, False)
    assert str(path) in caplog.text
    assert compile_cached("int x;") == (SMALL, True)


def test_an_entry_that_cannot_be_completed_is_not_there(compilations, monkeypatch):
    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    assert compile_cached("int x;") == (SMALL, False)
    assert cached_files() == []


def test_a_directory_that_cannot_be_made_costs_only_the_cache(compilations, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KCOMPAT_CACHE", str(tmp_path / "file"))
    assert compile_cached("int x;") == (SMALL, False)


def test_an_entry_somebody_else_wrote_is_not_run(compilations, monkeypatch):
    compile_cached("int x;")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert compile_cached("int x;")[1] is False


def test_writers_at_once_leave_one_whole_entry(compilations):
    threads = [threading.Thread(target=compile_cached, args=("int x;",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [path] = cached_files()
    assert Object.parse(path.read_text()) == SMALL


def test_the_cache_is_for_its_owner_alone(compilations):
    compile_cached("int x;")
    assert cache_dir().stat().st_mode & 0o077 == 0
    assert cached_files()[0].stat().st_mode & 0o077 == 0


def test_users_have_a_cache_of_their_own(monkeypatch):
    monkeypatch.delenv("KCOMPAT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/somebody/.cache")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cache_dir() == Path("/home/somebody/.cache/kcompat/bpf")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cache_dir() == Path("/var/cache/kcompat/bpf")


def test_without_bcc_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(Missing, match="apt-get install python3-bpfcc") as caught:
        compile_source("int x;")
    assert "\n" not in str(caught.value)


def test_c_becomes_programs_and_maps(compiler, capfd):
    made = compiler(SOURCE)
    sizes = {(m.name, m.key_size, m.value_size, m.max_entries) for m in made.maps}
    assert sizes == {("seen", 4, 8, 77), ("total", 4, 8, 3)}
    by_name = {p.name: p for p in made.programs}
    assert set(by_name) == {"kprobe__both", "rawtp__none"}
    assert {name for _, name in by_name["kprobe__both"].relocations} == {"seen", "total"}
    assert by_name["rawtp__none"].relocations == ()
    assert by_name["rawtp__none"].size * 8 == len(by_name["rawtp__none"].instructions)
    assert Object.parse(made.dump()) == made
    assert capfd.readouterr() == ("", "")


def test_compiling_leaves_no_descriptor_behind(compiler):
    compiler(SOURCE)
    before = descriptors()
    compiler(SOURCE)
    assert descriptors() == before


@pytest.mark.parametrize(("source", "word"), [
    ("int f(void *ctx) { return nowhere; }", "nowhere"), ("int f(void *ctx) { return 0;", "expected"),
    ("#include <linux/not_here.h>\nint f(void *ctx) { return 0; }", "not_here.h")])
def test_a_mistake_is_one_line_that_says_what_it_is(compiler, capfd, source, word):
    with pytest.raises(KcompatError) as caught:
        compiler(source)
    assert "\n" not in str(caught.value)
    assert word in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_warnings_go_to_the_log_only(compiler, capfd, caplog):
    # A command that another test has run here shows the log, until the next one begins.
    logging.getLogger().removeHandler(cli_errors._HANDLER)
    with caplog.at_level(logging.DEBUG, "kcompat.bpf"):
        compiler("#warning spoken\nint f(void *ctx) { return 0; }")
    assert "spoken" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_a_failed_compilation_is_not_cached(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("KCOMPAT_CACHE", str(tmp_path))
    with pytest.raises(KcompatError):
        compile_cached("int f(void *ctx) { return nowhere; }")
    assert not cache_dir().exists() or cached_files() == []


def test_cached_entries_are_plain_json(compilations):
    compile_cached("int x;")
    assert json.loads(cached_files()[0].read_text())["license"] == "GPL"


def test_no_source_of_ours_asks_for_a_version_number():
    """There is none to be had: an object is for every kernel."""
    sources = [p for room in ("kcompat", "guessers", "collector") for p in Path(room).rglob("*.[ch]")]
    asking = {p.name for p in sources if re.search("LINUX_VERSION_CODE|KERNEL_VERSION", p.read_text())}
    assert asking == {"version.h"}


def test_an_arch_in_the_environment_is_not_ours(compiler, monkeypatch):
    native = compiler(SOURCE)
    monkeypatch.setenv("ARCH", "powerpc")
    assert compiler(SOURCE) == native
    assert os.environ["ARCH"] == "powerpc"


def test_a_machine_nobody_knows_is_named():
    with pytest.raises(KcompatError, match="no programs can be compiled for vax"):
        compile_source("int x;", "vax")


def test_the_stub_headers_come_with_the_package():
    assert (HEADERS / "include/linux/version.h").is_file()
