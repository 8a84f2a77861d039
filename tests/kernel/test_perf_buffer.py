"""Rings of the real kernel: what programs hand over comes out once, also where a processor came later."""

import os
import platform
import struct
import time
from contextlib import closing
from pathlib import Path

import pytest

from kcompat import perf_buffer
from kcompat.bpf import compile_cached
from kcompat.load import Loaded
from kcompat.perf_buffer import PerfBuffer, cpus_of, online
from tests.kernel import signs
from tests.kernel.conftest import version_code
from tests.kernel.test_load import FUNCTIONS

# Hands over each sched_get_priority_min of this process, and counts what had nowhere to go.
NUMBERS = {"x86_64": 147, "aarch64": 126}
SOURCE = """
#include <uapi/linux/ptrace.h>
BPF_PERF_OUTPUT(told);
BPF_ARRAY(untold, u64, 1);
BPF_ARRAY(numbers, u64, 1);
struct raw { u64 args[2]; };

static __always_inline int tell(void *ctx)
{
	int zero = 0;
	u64 *number = numbers.lookup(&zero);
	u64 now;

	if (!number)
		return 0;
	__sync_fetch_and_add(number, 1);
	now = *number;
	if (told.perf_submit(ctx, &now, sizeof(now)))
		untold.increment(0);
	return 0;
}

int kprobe__tell(struct pt_regs *ctx)
{
	if (bpf_get_current_pid_tgid() >> 32 != PID)
		return 0;
	return tell(ctx);
}

int rawtp__tell(struct raw *ctx)
{
	if (bpf_get_current_pid_tgid() >> 32 != PID || ctx->args[1] != NUMBER)
		return 0;
	return tell(ctx);
}
"""
SIZE = 1 << 12
# How long a new processor may be without a ring, and some more.
SOON_S = 3
SPARE = Path("/sys/devices/system/cpu/cpu1/online")


@pytest.fixture
def loaded():
    source = SOURCE.replace("PID", str(os.getpid())).replace("NUMBER", str(NUMBERS[platform.machine()]))
    compiled, _ = compile_cached(source)
    with Loaded(compiled, version_code()) as live:
        if signs.KPROBES:
            live.attach_first("kprobe__tell", FUNCTIONS)
        else:
            live.attach("rawtp__tell", "sys_enter")
        yield live


@pytest.fixture
def rings(loaded):
    with closing(PerfBuffer(loaded.maps["told"], SIZE)) as opened:
        yield opened


@pytest.fixture
def affinity():
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def tell(times):
    for _ in range(times):
        os.sched_get_priority_min(os.SCHED_OTHER)


def numbers(rings):
    return [struct.unpack_from("<Q", data)[0] for data in rings.read()]


def untold(loaded):
    return struct.unpack("<Q", loaded.maps["untold"].get(bytes(4)))[0]


@pytest.mark.usefixtures("affinity")
def test_what_every_processor_hands_over_comes_out_once(loaded, rings):
    for cpu in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {cpu})
        tell(20)
    sent = 20 * len(cpus_of(online()))
    assert sorted(numbers(rings)) == list(range(1, sent + 1))
    assert numbers(rings) == []
    assert (untold(loaded), rings.lost, rings.changed) == (0, 0, 0)


@pytest.mark.usefixtures("affinity")
def test_what_found_the_ring_full_is_counted(loaded, rings):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tell(1000)
    came = numbers(rings)
    tell(1)
    came += numbers(rings)
    assert came == [*range(1, len(came)), 1001]
    assert rings.lost == 1001 - len(came)
    assert rings.filled >= 1


def test_after_a_sleep_every_processor_has_a_ring_that_works(loaded, rings, monkeypatch):
    before = perf_buffer.asleep_s()
    monkeypatch.setattr(perf_buffer, "asleep_s", lambda: before + 3600)
    tell(3)
    time.sleep(SOON_S)
    assert numbers(rings) == [1, 2, 3] and rings.changed == 1
    tell(2)
    time.sleep(SOON_S)
    assert numbers(rings) == [4, 5]
    assert (rings.changed, untold(loaded)) == (1, 0)


@pytest.mark.usefixtures("affinity")
@pytest.mark.skipif("KCOMPAT_CI_NONCE" not in os.environ, reason="it switches a processor off: in guests only")
def test_a_processor_that_comes_back_has_a_ring_again(loaded, rings):
    if not SPARE.exists():
        pytest.skip("the one processor stays on")
    try:
        SPARE.write_text("0")
        assert 1 not in cpus_of(online())
        time.sleep(SOON_S)
        assert numbers(rings) == []
        assert rings.changed == 1
        SPARE.write_text("1")
        os.sched_setaffinity(0, {1})
        tell(5)
        assert untold(loaded) == 5, "nobody has looked yet"
        time.sleep(SOON_S)
        assert numbers(rings) == []
        assert rings.changed == 2
        tell(5)
        assert numbers(rings) == [6, 7, 8, 9, 10]
        assert untold(loaded) == 5
    finally:
        SPARE.write_text("1")
