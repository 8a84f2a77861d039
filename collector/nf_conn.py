"""Translated destinations told by the tracker itself: programs at its functions see those of every namespace."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from collector.datasets.hooks import Backend, Hook, attach_first
from collector.trackers import ask_all
from collector.translation import Told, Translation, address, translated
from kcompat import probe, template
from kcompat.bpf import compile_cached
from kcompat.errors import KcompatError, UnknownField, Unsupported
from kcompat.fields import Field, find
from kcompat.hook_status import HookStatus
from kcompat.load import Loaded
from kcompat.maps import possible_cpus
from kcompat.offsets import Offset, Offsets, State
from kcompat.perf_buffer import PerfBuffer

log = logging.getLogger(__name__)

NAME = "nf_conn"
SOURCE = Path(__file__).with_name("nf_conn.bpf.c")
HOOKS: dict[Backend, tuple[Hook, ...]] = {"kprobe": (
    Hook("kprobe__insert", ("__nf_conntrack_hash_insert",), required=False),
    Hook("kprobe__confirm", ("__nf_conntrack_confirm",), unless=(("kprobe__insert",),)),
    # What ctnetlink is told to make is never confirmed.
    Hook("kprobe__insert", ("nf_conntrack_hash_check_insert",), required=False, unless=(("kprobe__insert",),)),
    # From 5.17 on, and before (kernel commit 6ae7989c9af0). Not nf_ct_delete: what GCC makes of it is in part its
    # callers' (nf_ct_delete.part.0 of Debian's 5.10 and 7.2).
    Hook("kprobe__destroy", ("nf_ct_destroy", "destroy_conntrack"), required=False))}

# Of each processor; all together no more than this where there are many.
_RING, _SMALLEST_RING, _RINGS = 1 << 19, 1 << 15, 1 << 24
# A dump may take this share of a processor, for what was lost.
_DUMP_S, _DUMP_SHARE = 1.0, 0.01
_EVENT = struct.Struct("<Q16s16s16sI4HBB2x")
_SIZES = {2: 4, 10: 16}  # AF_INET, AF_INET6
# Which namespace a connection is in: not there at all in a kernel that has none.
_NETNS = (find("nf_conn.ct_net"), find("net.ns.inum"))


def wanted() -> tuple[Field, ...]:
    """Every field the programs can use, the indispensable ones first."""
    hard, soft = template.needed(template.read_source(SOURCE))
    return hard + soft


def render(offsets: Offsets) -> str:
    """The C as it will be compiled. Raises UnknownField when an indispensable offset is not known."""
    unknown = [field for field in _NETNS if _offset(offsets, field).state is State.UNKNOWN]
    if unknown:
        raise UnknownField(NAME, [field.name for field in unknown],
                           {field.name: _offset(offsets, field).reason or "" for field in unknown})
    return template.render(NAME, template.read_source(SOURCE), offsets)


def _offset(offsets: Offsets, field: Field) -> Offset:
    return offsets.get(field) or Offset.unknown(field, "none", "")


def event(data: bytes) -> tuple[int, bool, Translation] | None:
    """(netns, whether it ended, which) of what a program handed over; None for what is none."""
    if len(data) < _EVENT.size:
        return None
    (_, source, destination, real, netns, source_port, destination_port, real_port, family, protocol,
     ended) = _EVENT.unpack_from(data)
    if (size := _SIZES.get(family)) is None:
        return None
    one = translated(Translation(protocol, address(source[:size]), source_port, address(destination[:size]),
                                 destination_port, address(real[:size]), real_port))
    return (netns, bool(ended), one) if one else None


class NfConn:
    """The attached programs. Connections older than they are, or lost on the way, ctnetlink is asked for, once."""

    how = "nf_conn by kprobes"
    namespaces = 0

    def __init__(self, offsets: Offsets, version_code: int, backends: Sequence[Backend], told: Told,
                 hooks: dict[Backend, tuple[Hook, ...]] | None = None) -> None:
        """Raises UnknownField, Missing or Unsupported, also where the tracker is not loaded yet."""
        hooks = hooks or HOOKS
        usable = [backend for backend in backends if backend in hooks]
        source = render(offsets)
        if not usable:
            raise Unsupported(f"{NAME} is off: it goes by kprobes alone, which are not to be used")
        try:
            probe.kprobe()
        except OSError as error:
            raise Unsupported(f"{NAME} is off: no kprobes: {error.strerror}") from error
        compiled, _ = compile_cached(source)
        self._told = told
        self._loaded = Loaded(compiled, version_code)
        self._rings: PerfBuffer | None = None
        try:
            size = max(_SMALLEST_RING, min(_RING, 1 << (_RINGS // possible_cpus()).bit_length() - 1))
            try:
                self._rings = PerfBuffer(self._loaded.maps["translated"], size)
            except OSError as error:
                raise Unsupported(f"{NAME} is off: no perf buffer: {error.strerror}") from error
            attach_first(NAME, self._loaded, hooks, usable)
        except BaseException:
            self.close()
            raise
        self._refused: frozenset[int] = frozenset()
        self._left_out = 0
        self._dump_at_s, self._must_dump = 0.0, True

    @property
    def hooks(self) -> Sequence[HookStatus]:
        return self._loaded.hooks

    @property
    def lost(self) -> int:
        return self._rings.lost if self._rings else 0

    @property
    def refused(self) -> int:
        """Namespaces of which only connections are known that are younger than the programs."""
        return len(self._refused)

    def wait(self, timeout_s: float) -> None:
        """Until much is there, but no longer than this."""
        assert self._rings
        self._rings.wait(timeout_s)

    def rescan(self) -> None:
        """Asks every namespace for what is there, at the beginning and where something went by unseen."""
        left_out = sum(self._loaded.left_out(name) or 0 for name in ("kprobe__insert", "kprobe__confirm"))
        if left_out > self._left_out:
            self._left_out, self._must_dump = left_out, True
        if not self._must_dump or time.monotonic() < self._dump_at_s:
            return
        begun_s = time.thread_time()
        refused = ask_all(self._told)
        self._must_dump = False
        took_s = time.thread_time() - begun_s
        self._dump_at_s = time.monotonic() + max(_DUMP_S, took_s / _DUMP_SHARE)
        for netns in refused.keys() - self._refused:
            log.warning("older translated destinations of network namespace %d stay unknown: %s", netns, refused[netns])
        self._refused = frozenset(refused)

    def drain(self) -> None:
        """In the order of what happened: each processor has a ring of its own."""
        assert self._rings
        before = self._missed()
        for data in sorted(self._rings.read(), key=_time_of):
            if found := event(data):
                self._told(*found)
        self._must_dump |= self._missed() > before

    def _missed(self) -> int:
        assert self._rings
        return self._rings.lost + self._rings.filled + self._rings.changed

    def hear(self, netns: int, own: int) -> None:
        self.drain()

    def settle(self) -> None:
        self.drain()
        self.rescan()

    def close(self) -> None:
        self._loaded.detach()
        if self._rings:
            self._rings.close()
        self._loaded.close()


def _time_of(data: bytes) -> bytes:
    return data[7::-1]


def why_not(error: KcompatError) -> str:
    """Of an error of `NfConn`, without what whoever asks knows already."""
    return str(error).removeprefix(f"{NAME} is off: ")
