"""BPF maps as Python mappings from bytes to bytes."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import re
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kcompat.sysbpf import Cmd, MapType, bpf, map_create

# Kprobes of a processor rest while it is in such a call, and longer if something else gets its turn meanwhile.
_BATCH = 128
# Keys, and their values.
_Packed = tuple[bytes, bytes]
_ENOTSUPP = 524  # a kernel-internal code that the batch calls let out


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What a map is, before it exists."""

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


class Map:
    """A live map. Keys and values are bytes of exactly the sizes of its spec; per-CPU maps give one value a CPU."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self.entries: int | None = None  # when it was last read whole
        entries = spec.max_entries
        if spec.kind == MapType.PERF_EVENT_ARRAY:
            entries = possible_cpus()
        self.fd = map_create(spec.kind, spec.key_size, spec.value_size, entries, spec.flags, spec.name)
        size = spec.value_size
        if spec.kind in (MapType.PERCPU_ARRAY, MapType.PERCPU_HASH):
            size = (size + 7 & ~7) * possible_cpus()
        self._key = ctypes.create_string_buffer(spec.key_size)
        self._value = ctypes.create_string_buffer(size)
        self._next = ctypes.create_string_buffer(spec.key_size)
        self._attr = struct.pack("<I4xQQQ", self.fd, ctypes.addressof(self._key), ctypes.addressof(self._value), 0)
        self._delete = struct.pack("<I4xQ", self.fd, ctypes.addressof(self._key))
        self._step = struct.pack("<I4xQQQ", self.fd, ctypes.addressof(self._key), ctypes.addressof(self._next), 0)
        self._batches = spec.kind == MapType.HASH

    @property
    def memory_bytes(self) -> int | None:
        """Kernel memory it takes, most kinds all of it from the beginning; None where the kernel does not tell.

        From 5.11 on it counts for the memory cgroup of who made it, before for RLIMIT_MEMLOCK.
        """
        try:
            told = Path(f"/proc/self/fdinfo/{self.fd}").read_text()
        except OSError:
            return None  # it is closed, or there is no /proc
        found = re.search(r"(?m)^memlock:\s*(\d+)$", told)
        # Even the smallest takes something: a zero is no answer.
        return int(found[1]) or None if found else None

    def get(self, key: bytes) -> bytes | None:
        self._set_key(key)
        try:
            bpf(Cmd.MAP_LOOKUP_ELEM, self._attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value.raw

    def set(self, key: bytes, value: bytes) -> None:
        self._set_key(key)
        if len(value) != len(self._value):
            raise ValueError(f"{self.spec.name}: a value of {len(value)} bytes, not {len(self._value)}")
        self._value.raw = value
        bpf(Cmd.MAP_UPDATE_ELEM, self._attr)

    def delete(self, key: bytes) -> bool:
        """Whether the key was there."""
        self._set_key(key)
        try:
            bpf(Cmd.MAP_DELETE_ELEM, self._delete)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def keys(self) -> Iterator[bytes]:
        """Every key once; keys that come or go meanwhile may or may not be seen."""
        attr = struct.pack("<I4xQQQ", self.fd, 0, ctypes.addressof(self._next), 0)
        seen: set[bytes] = set()
        while True:
            try:
                bpf(Cmd.MAP_GET_NEXT_KEY, attr)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                # Kernels without commit 8fe45924387b (4.12) read the key they are to begin behind, whatever is there.
                if error.errno == errno.EFAULT and attr is not self._step:
                    self._set_key(self._absent())
                    attr = self._step
                    continue
                raise
            key = self._next.raw
            if key in seen:
                # The key we stood on was deleted and the walk began anew: everything before was given already.
                self._set_key(key)
                attr = self._step
                continue
            seen.add(key)
            yield key
            self._set_key(key)
            attr = self._step

    def _absent(self) -> bytes:
        """A key that is not there: who asks what is behind it is told the first."""
        while self.get(key := random.randbytes(self.spec.key_size)) is not None:
            pass
        return key

    def items(self) -> list[tuple[bytes, bytes]]:
        """Every entry, in batches where the kernel has them (5.6), one by one before."""
        return list(self.read())

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry as it is now. Until it is asked for it stays packed: many take little more than their bytes."""
        return self._unpacked(self._counted(), taken=False)

    def take(self) -> Iterator[tuple[bytes, bytes]]:
        """As `read`, but what is handed out is out of the map too, with its neighbours in a batch."""
        return self._unpacked(self._counted(), taken=True)

    def _counted(self) -> deque[_Packed]:
        batches = self._read()
        self.entries = sum(len(keys) for keys, _ in batches) // self.spec.key_size
        return batches

    def _unpacked(self, batches: deque[_Packed], *, taken: bool) -> Iterator[tuple[bytes, bytes]]:
        key_size = self.spec.key_size
        while batches:
            keys, values = batches.popleft()
            if taken:
                self._delete_all(keys)
            count = len(keys) // key_size
            value_size = len(values) // count  # per-CPU maps have one a processor
            for at in range(count):
                yield keys[at * key_size:(at + 1) * key_size], values[at * value_size:(at + 1) * value_size]

    def _delete_all(self, keys: bytes) -> None:
        """In a sixth of the time it takes one by one. A batch ends at a key that is not there."""
        size = self.spec.key_size
        if self._batches:
            buffer = ctypes.create_string_buffer(keys, len(keys))
            attr = struct.pack("<QQQQIIQQ", 0, 0, ctypes.addressof(buffer), 0, len(keys) // size, self.fd, 0, 0)
            with suppress(OSError):
                bpf(Cmd.MAP_DELETE_BATCH, bytearray(attr))
                return
        for at in range(0, len(keys), size):
            self.delete(keys[at:at + size])

    def _read(self) -> deque[_Packed]:
        if self._batches:
            try:
                return self._read_in_batches()
            except OSError as error:
                if error.errno not in (errno.EINVAL, _ENOTSUPP, errno.ENOSPC):
                    raise
                self._batches = error.errno == errno.ENOSPC
        batches: deque[_Packed] = deque()
        keys = list(self.keys())
        for begin in range(0, len(keys), _BATCH):
            found = [(key, value) for key in keys[begin:begin + _BATCH] if (value := self.get(key)) is not None]
            if found:
                batches.append((b"".join(key for key, _ in found), b"".join(value for _, value in found)))
        return batches

    def _read_in_batches(self) -> deque[_Packed]:
        """The kernel gives a bucket whole, and each bucket once: no key comes twice."""
        key_size, value_size = self.spec.key_size, self.spec.value_size
        keys = ctypes.create_string_buffer(key_size * _BATCH)
        values = ctypes.create_string_buffer(value_size * _BATCH)
        token = ctypes.create_string_buffer(max(key_size, 8))
        batches: deque[_Packed] = deque()
        start = 0
        while True:
            attr = bytearray(struct.pack("<QQQQIIQQ", start, ctypes.addressof(token), ctypes.addressof(keys),
                                         ctypes.addressof(values), _BATCH, self.fd, 0, 0))
            last = False
            try:
                bpf(Cmd.MAP_LOOKUP_BATCH, attr)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                last = True
            count = struct.unpack_from("<I", attr, 32)[0]
            if count:
                batches.append((keys.raw[:count * key_size], values.raw[:count * value_size]))
            if last:
                return batches
            start = ctypes.addressof(token)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _set_key(self, key: bytes) -> None:
        if len(key) != len(self._key):
            raise ValueError(f"{self.spec.name}: a key of {len(key)} bytes, not {len(self._key)}")
        self._key.raw = key


def possible_cpus() -> int:
    """How many CPUs the kernel is ready for: per-CPU maps have that many values, holes included."""
    with open("/sys/devices/system/cpu/possible") as file:  # noqa: PTH123 - a hot little read
        return int(file.read().strip().rsplit("-", 1)[-1].rsplit(",", 1)[-1]) + 1
