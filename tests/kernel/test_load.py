"""Programs in the real kernel: loaded, hooked by every way this kernel has, counted, and gone when closed."""

import errno
import os
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kcompat import attach, probe
from kcompat.bpf import Object, ObjectProgram, compile_cached
from kcompat.errors import KcompatError, Missing
from kcompat.load import Loaded
from kcompat.maps import MapSpec
from tests.kernel.conftest import cannot, needs, version_code

# Counts how often a system call nobody makes is made: sched_get_priority_min.
SOURCE = """
#include <uapi/linux/ptrace.h>
BPF_ARRAY(count, u64, 1);
int kprobe__seen(struct pt_regs *ctx) { count.increment(0); return 0; }
int kretprobe__seen(struct pt_regs *ctx) { count.increment(0); return 0; }
int rawtp__seen(void *ctx) { count.increment(0); return 0; }
int tp__seen(void *ctx) { count.increment(0); return 0; }
"""
FUNCTIONS = [f"{prefix}sys_sched_get_priority_min" for prefix in ("__x64_", "__arm64_", "__se_", "SyS_", "")]
MOV_R0_0, EXIT = b"\xb7\0\0\0\0\0\0\0", b"\x95\0\0\0\0\0\0\0"


@pytest.fixture
def loaded():
    compiled, _ = compile_cached(SOURCE)
    with Loaded(compiled, version_code()) as live:
        yield live


def calls(loaded, times=23):
    """How often a hook fired while we made so many calls."""
    before = counted(loaded)
    for _ in range(times):
        os.sched_get_priority_min(os.SCHED_OTHER)
    return counted(loaded) - before


def counted(loaded):
    return struct.unpack("<Q", loaded.maps["count"].get(bytes(4)))[0]


def events():
    """Our kprobes in tracefs."""
    return [line for line in (attach.tracefs() / "kprobe_events").read_text().splitlines() if "kcompat_" in line]


def descriptors():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def needs_kprobes():
    if not attach._KPROBE_PMU.is_dir():
        pytest.skip("this kernel has no kprobe PMU")


def needs_tracefs():
    """Where the kernel has kprobes it has tracefs, and a machine that must be tested must have it mounted."""
    try:
        there = (attach.tracefs() / "kprobe_events").exists()
    except Missing as missing:
        (cannot if attach._KPROBE_PMU.is_dir() else pytest.skip)(str(missing))
    if not there:
        pytest.skip("this kernel has no kprobe_events")


@pytest.mark.parametrize("kind", ["kprobe", "kretprobe"])
def test_a_kprobe_counts_every_call_until_it_is_detached(loaded, kind):
    needs_kprobes()
    assert loaded.attach_first(f"{kind}__seen", FUNCTIONS)
    assert calls(loaded) == 23
    loaded.detach()
    assert calls(loaded) == 0


@pytest.mark.parametrize("kind", ["kprobe", "kretprobe"])
def test_the_same_through_tracefs_as_before_4_17(loaded, kind, monkeypatch):
    needs_tracefs()
    monkeypatch.setattr(attach, "_KPROBE_PMU", Path("/nonexistent"))
    assert loaded.attach_first(f"{kind}__seen", FUNCTIONS)
    assert len([e for e in events() if e.startswith("r" if kind == "kretprobe" else "p")]) == 1
    assert calls(loaded) == 23
    loaded.detach()
    assert calls(loaded) == 0
    assert events() == []


def test_two_on_one_function_through_tracefs_have_events_of_their_own(loaded, monkeypatch):
    needs_tracefs()
    monkeypatch.setattr(attach, "_KPROBE_PMU", Path("/nonexistent"))
    assert loaded.attach_first("kprobe__seen", FUNCTIONS) == loaded.attach_first("kprobe__seen", FUNCTIONS)
    assert calls(loaded) == 46


def test_returns_are_seen_of_more_calls_at_a_time_than_there_are_processors(loaded):
    """Each call that waits keeps something of a kretprobe; from 4.12 on there can be enough of it."""
    needs_tracefs()
    if "r[maxactive]" not in (attach.tracefs() / "README").read_text():
        pytest.skip("this kernel has as many as processors")
    waiting = 2 * os.cpu_count() + 20
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(waiting)]
    threads = [threading.Thread(target=one.recv, args=(1,), daemon=True) for one in sockets]
    loaded.attach("kretprobe__seen", "udp_recvmsg")
    for one, thread in zip(sockets, threads, strict=True):
        one.bind(("127.0.0.1", 0))
        thread.start()
    time.sleep(2)
    before = counted(loaded)
    for one in sockets:
        one.sendto(b"x", one.getsockname())
    for thread in threads:
        thread.join(30)
    for one in sockets:
        one.close()
    # No kprobe runs while its processor is at other BPF work: an rt kernel has been seen to miss one.
    assert waiting - 3 <= counted(loaded) - before <= waiting


def test_what_one_that_was_killed_left_is_taken_away_and_nothing_else(loaded, monkeypatch):
    needs_tracefs()
    monkeypatch.setattr(attach, "_KPROBE_PMU", Path("/nonexistent"))
    monkeypatch.setattr(attach, "_tidied", set())
    somebodys = f"kcompat_{os.getppid()}_x"
    # No process has the first number (PID_MAX_LIMIT); the second was ours in another container, perhaps.
    nobodys = ("kcompat_4194305_0", f"kcompat_{os.getpid()}_x")
    for event in (somebodys, *nobodys):
        attach._append(attach.tracefs() / "kprobe_events", f"p:kprobes/{event} udp_recvmsg\n")
    try:
        assert loaded.attach_first("kprobe__seen", FUNCTIONS)
        there = [e for e in events() if e.rpartition("/")[2].split()[0] in (somebodys, *nobodys)]
        assert len(there) == 1 and somebodys in there[0]
    finally:
        attach._append(attach.tracefs() / "kprobe_events", f"-:kprobes/{somebodys}\n")


def test_a_function_that_is_not_there_leaves_no_event(loaded, monkeypatch):
    needs_tracefs()
    monkeypatch.setattr(attach, "_KPROBE_PMU", Path("/nonexistent"))
    assert loaded.attach_first("kprobe__seen", ["no_such_function_anywhere"]) is None
    assert events() == []
    assert calls(loaded) == 0


def test_an_event_whose_program_is_refused_is_taken_away(loaded, monkeypatch):
    needs_tracefs()
    monkeypatch.setattr(attach, "_KPROBE_PMU", Path("/nonexistent"))
    wrong = loaded.maps["count"].fd
    for function in FUNCTIONS:
        with pytest.raises(OSError):
            attach.kprobe(wrong, function)
    assert events() == []


def test_without_pmu_and_tracefs_the_mount_command_is_named(loaded, monkeypatch):
    monkeypatch.setattr(attach, "_KPROBE_PMU", Path("/nonexistent"))
    monkeypatch.setattr(attach, "_TRACEFS", (Path("/nonexistent"),))
    with pytest.raises(Missing, match="mount -t tracefs"):
        loaded.attach("kprobe__seen", FUNCTIONS[0])


def test_a_raw_tracepoint_fires_and_ends(loaded):
    needs(probe.raw_tracepoint)
    loaded.attach("rawtp__seen", "sys_enter")
    assert calls(loaded) >= 23
    loaded.detach()
    assert calls(loaded) == 0


def test_a_tracepoint_fires_and_ends(loaded):
    needs_tracefs()
    needs(probe.tracepoint)
    loaded.attach("tp__seen", "raw_syscalls:sys_enter")
    assert calls(loaded) >= 23
    loaded.detach()
    assert calls(loaded) == 0


def test_a_hook_that_is_not_there_lets_the_next_be_tried(loaded):
    needs(probe.raw_tracepoint)
    with pytest.raises(OSError) as caught:
        loaded.attach("rawtp__seen", "no_such_tracepoint")
    assert caught.value.errno == errno.ENOENT
    assert loaded.attach_first("rawtp__seen", ["no_such_tracepoint", "sys_enter"]) == "sys_enter"


def test_closing_frees_every_descriptor():
    needs(probe.raw_tracepoint)
    compiled, _ = compile_cached(SOURCE)
    before = descriptors()
    with Loaded(compiled, version_code()) as live:
        live.attach("rawtp__seen", "sys_enter")
        assert len(descriptors()) > len(before)
    assert descriptors() == before


def test_a_program_the_verifier_refuses_is_one_line_with_its_word():
    endless = Object((ObjectProgram("kprobe__endless", MOV_R0_0, ()),), (), "GPL")
    with Loaded(endless, version_code()) as live, pytest.raises(KcompatError, match="refused program") as caught:
        live.load("kprobe__endless")
    assert "kprobe__endless" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith("the verifier said nothing")


def test_a_program_is_loaded_once():
    tiny = Object((ObjectProgram("kprobe__tiny", MOV_R0_0 + EXIT, ()),), (), "GPL")
    with Loaded(tiny, version_code()) as live:
        assert live.load("kprobe__tiny") == live.load("kprobe__tiny")


def test_a_program_that_is_not_in_the_object_is_named():
    with Loaded(Object((), (), "GPL"), version_code()) as live, pytest.raises(KcompatError, match="rawtp__nowhere"):
        live.load("rawtp__nowhere")


def test_a_map_the_kernel_refuses_is_named_and_leaves_nothing_open():
    good = MapSpec("good", 1, 4, 8, 10)
    before = descriptors()
    with pytest.raises(KcompatError, match="map bad"):
        Loaded(Object((), (good, replace(good, name="bad", max_entries=0)), "GPL"), version_code())
    assert descriptors() == before
