"""Maps of the real kernel: what is put in comes out, however many entries, whatever the kernel has for batches."""

import errno
import json
import os
import resource
import shutil
import struct
import subprocess
import sys

import pytest

from kcompat import maps, sysbpf
from kcompat.maps import Map, MapSpec, possible_cpus
from kcompat.sysbpf import Cmd, MapType
from tests.kernel.conftest import needs

MANY = 5000


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


@pytest.fixture
def make():
    made = []

    def one(kind=MapType.HASH, key=4, value=8, entries=MANY + 10):
        made.append(Map(MapSpec("test", kind, key, value, entries)))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.fixture
def filled(make):
    table = make()
    for number in range(MANY):
        table.set(u32(number), u64(number * number))
    return table


def test_get_set_delete(make):
    table = make()
    assert table.get(u32(1)) is None
    table.set(u32(1), u64(10))
    table.set(u32(1), u64(11))
    assert table.get(u32(1)) == u64(11)
    assert table.delete(u32(1)) is True
    assert table.delete(u32(1)) is False
    assert table.get(u32(1)) is None


@pytest.mark.parametrize("kind, key, entries", [(MapType.HASH, 4, 10_000), (MapType.ARRAY, 4, 100_000),
                                                (MapType.PERCPU_ARRAY, 4, 16)])
def test_the_memory_of_a_map_is_what_bpftool_says(kind, key, entries):
    name = f"t{os.getpid()}_{kind}"
    spec = MapSpec(name, kind, key, 8, entries)

    def kind_of_map():
        Map(spec).close()

    needs(kind_of_map)
    table = Map(spec)
    try:
        ours = table.memory_bytes
        if not shutil.which("bpftool"):
            pytest.skip("no bpftool here")
        said = subprocess.run(["bpftool", "map", "list", "--json"], capture_output=True, text=True, timeout=60)
        listed = json.loads(said.stdout or "[]")
        theirs = next((one.get("bytes_memlock") for one in listed if one.get("name") == name), None)
    finally:
        table.close()

    if not theirs:
        pytest.skip(f"bpftool does not know: {said.stderr}")
    assert ours == theirs and ours >= (8 + key * (kind == MapType.HASH)) * entries
    assert table.memory_bytes is None  # closed: nobody tells


@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one by one"])
def test_five_thousand_entries_come_out_once_each(filled, batches):
    filled._batches = batches
    assert sorted(filled.items()) == sorted((u32(n), u64(n * n)) for n in range(MANY))


@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one by one"])
def test_what_is_taken_comes_out_once_and_what_came_meanwhile_stays(filled, batches):
    filled._batches = batches
    taken = filled.take()
    filled.set(u32(MANY), u64(7))
    # One of them has gone already: those behind it in its batch go all the same.
    filled.delete(u32(MANY // 2))

    assert sorted(taken) == sorted((u32(n), u64(n * n)) for n in range(MANY))
    assert filled.items() == [(u32(MANY), u64(7))]


@pytest.mark.parametrize("code", [errno.EINVAL, maps._ENOTSUPP, errno.ENOSPC])
def test_a_kernel_without_batches_or_with_crowded_buckets_is_read_one_by_one(filled, monkeypatch, code):
    """EINVAL: before 5.6. ENOTSUPP: not for this kind of map. ENOSPC: a bucket longer than the buffer."""
    refused = []

    def refuse():
        refused.append(code)
        raise OSError(code, "no")

    monkeypatch.setattr(filled, "_read_in_batches", refuse)
    assert len(filled.items()) == MANY
    filled.items()
    # Only a crowded bucket may have more room next time.
    assert len(refused) == (2 if code == errno.ENOSPC else 1)


def test_other_errors_of_a_batch_are_not_hidden(filled, monkeypatch):
    def refuse():
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(filled, "_read_in_batches", refuse)
    with pytest.raises(PermissionError):
        filled.items()


def test_keys_survive_deletions_on_the_way(filled):
    seen = []
    for key in filled.keys():  # noqa: SIM118 - a Map is no dict
        seen.append(key)
        filled.delete(key)
    assert len(seen) == len(set(seen)) == MANY
    assert filled.items() == []


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.ARRAY])
def test_a_kernel_that_must_be_given_a_key_to_begin_behind_gives_all(make, monkeypatch, kind):
    """As those do that lack kernel commit 8fe45924387b; all else is the real one's."""
    def bpf(cmd, attr):
        if cmd == Cmd.MAP_GET_NEXT_KEY and not struct.unpack_from("<Q", attr, 8)[0]:
            raise OSError(errno.EFAULT, "Bad address")
        return sysbpf.bpf(cmd, attr)

    table = make(kind, entries=300)
    table._batches = False
    for number in range(300):
        table.set(u32(number), u64(number + 1))
    monkeypatch.setattr(maps, "bpf", bpf)
    assert sorted(table.items()) == sorted((u32(n), u64(n + 1)) for n in range(300))
    if kind == MapType.HASH:
        for number in range(300):
            table.delete(u32(number))
        assert table.items() == []


def test_a_full_map_says_so(make):
    table = make(entries=3)
    with pytest.raises(OSError, match="Argument list too long") as caught:
        for number in range(4):
            table.set(u32(number), u64(0))
    assert caught.value.errno == errno.E2BIG


def test_arrays_hold_every_slot_from_the_start(make):
    table = make(MapType.ARRAY, entries=7)
    table.set(u32(3), u64(9))
    assert table.items() == [(u32(n), u64(9 if n == 3 else 0)) for n in range(7)]
    assert table.get(u32(7)) is None


def per_cpu_hash():
    """Before 4.6 there is none."""
    Map(MapSpec("test", MapType.PERCPU_HASH, 4, 4, 1)).close()


def test_per_cpu_maps_give_a_value_for_every_possible_cpu(make):
    needs(per_cpu_hash)
    table = make(MapType.PERCPU_HASH, value=4)
    value = b"".join(struct.pack("<I4x", cpu) for cpu in range(possible_cpus()))
    table.set(u32(1), value)
    assert table.get(u32(1)) == value
    assert table.items() == [(u32(1), value)]


def test_wrong_sizes_are_refused_before_the_kernel_reads_past_them(make):
    table = make()
    with pytest.raises(ValueError, match="a key of 3 bytes, not 4"):
        table.get(b"abc")
    with pytest.raises(ValueError, match="a value of 9 bytes, not 8"):
        table.set(u32(1), bytes(9))


def test_odd_sizes_of_keys(make):
    table = make(key=38, value=1)
    table.set(b"k" * 38, b"v")
    assert table.items() == [(b"k" * 38, b"v")]


def test_closing_twice_does_no_harm(make):
    table = make()
    table.close()
    table.close()
    assert table.fd == -1


@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one by one"])
def test_what_is_read_is_as_it_was_then(filled, batches):
    filled._batches = batches
    entries = filled.read()
    for number in range(MANY):
        filled.set(u32(number), u64(0))
    filled.delete(u32(7))

    assert filled.entries == MANY
    assert sorted(entries) == sorted((u32(n), u64(n * n)) for n in range(MANY))


def test_a_limit_of_64_kib_of_locked_memory_is_raised():
    """Before 5.11 a map counts against it; root may raise it, and what loads programs does."""
    script = ("from kcompat.sysbpf import MapType, map_create, raise_memlock; raise_memlock(); "
              "map_create(MapType.HASH, 4, 64, 100_000)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16)))
    assert done.returncode == 0, done.stderr
