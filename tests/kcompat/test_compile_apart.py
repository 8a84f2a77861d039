"""A compilation in a child makes the same object, fails in the same words, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kcompat import compile_apart as apart
from kcompat.bpf import Object, ObjectProgram, compile_source
from kcompat.compile_apart import compile_apart
from kcompat.errors import KcompatError, Missing

SMALL = Object((ObjectProgram("kprobe__x", bytes(1 << 17), ()),), (), "GPL")


def children():
    """Of this process, ended ones that nobody waited for among them; other tests may have left some that go on."""
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


@pytest.fixture(autouse=True)
def no_children():
    before = children()
    yield
    assert children() <= before


def test_what_the_child_makes_comes_over_whole(monkeypatch):
    monkeypatch.setattr(apart, "compile_source", lambda source, machine, words_to=None: SMALL)

    assert compile_apart("int x;") == SMALL


@pytest.mark.parametrize("error", [Missing("bcc is needed"), KcompatError("bcc could not compile it")])
def test_its_errors_are_ours(monkeypatch, error):
    def fail(source, machine, words_to=None):
        raise error

    monkeypatch.setattr(apart, "compile_source", fail)

    with pytest.raises(type(error), match=f"^{error}$"):
        compile_apart("int x;")


def test_a_child_that_waits_for_ever_is_replaced_by_ourselves(monkeypatch):
    mine = os.getpid()

    def odd(source, machine, words_to=None):
        if os.getpid() != mine:
            os.read(os.pipe()[0], 1)
        return SMALL

    monkeypatch.setattr(apart, "compile_source", odd)
    monkeypatch.setattr(apart, "_PATIENCE_S", 0.2)
    assert compile_apart("waits") == SMALL


def test_a_child_that_ends_takes_nobody_with_it(monkeypatch):
    mine = os.getpid()

    def ends(source, machine, words_to=None):
        assert os.getpid() != mine
        words_to.write(b"warning: it gets worse\nerror: no more\n")
        words_to.flush()
        os._exit(1)

    monkeypatch.setattr(apart, "compile_source", ends)
    with pytest.raises(KcompatError, match=r"^bcc could not compile the program: error: no more \(exit status 1\)$"):
        compile_apart("ends")


def test_half_an_answer_is_none(monkeypatch):
    def is_killed(out, source, machine, words_to):
        os.write(out, b'["object", "half')
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(apart, "_child", is_killed)
    with pytest.raises(KcompatError, match=r"it said nothing \(killed by signal 9\)$"):
        compile_apart("int x;")


def test_what_nobody_foresaw_is_told_too(monkeypatch):
    def fails(source, machine, words_to=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apart, "compile_source", fails)
    with pytest.raises(KcompatError, match="No space left on device"):
        compile_apart("int x;")


@pytest.mark.skipif(os.geteuid() != 0, reason="bcc compiles for root only")
def test_a_fault_over_which_llvm_ends_is_an_error_in_its_words():
    source = """
        int rawtp__deep(void *ctx)
        {
            char much[600];

            bpf_probe_read(much, sizeof(much), ctx);
            return much[599];
        }"""
    with pytest.raises(KcompatError, match="stack limit"):
        compile_apart(source)


@pytest.mark.skipif(os.geteuid() != 0, reason="bcc compiles for root only")
def test_llvm_is_never_mapped():
    source = "int rawtp__none(void *ctx) { return 0; }"
    code = ("import sys; from kcompat.compile_apart import compile_apart; print(compile_apart(sys.argv[1]).dump())\n"
            "print('LLVM' in open('/proc/self/maps').read(), 'bcc' in sys.modules)")

    done = subprocess.run([sys.executable, "-c", code, source], check=True, capture_output=True, text=True, timeout=120)

    made, mapped = done.stdout.splitlines()
    assert Object.parse(made) == compile_source(source) and mapped == "False False"
