"""Reads one file for the kernels in it, whatever it is packed in: told by its content, bounded, and never raising."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from kcompat.btf_sections import MAGICS as BTF_MAGICS
from kcompat.elf import MAGIC as ELF_MAGIC
from kcompat.errors import BadInput, KcompatError
from kcompat.kernel import Kernel
from offset_db import harvest_images as images
from offset_db.harvest_archives import (
    RPM_MAGIC,
    Entry,
    entries_of_deb,
    entries_of_rpm,
    entries_of_tar,
    is_deb,
    is_tar,
)
from offset_db.harvest_kernels import (
    OWNED,
    OWNERS,
    Nothing,
    found_in_bare,
    found_in_btf,
    found_in_elf,
    is_module,
    module_of,
)
from offset_db.harvest_report import Fingerprint, Found, Report, fingerprint
from offset_db.harvest_unpack import MIB, Readable, is_packed, limit_of, unpacked

MEMORY_LIMIT = 2 << 30
_HEAD = 1024
_MAX_MEMBER = 6 << 30
_MAX_IMAGE = 256 * MIB


class _Foreign(Nothing):
    """A file of no kind known here."""


def read(path: Path) -> Report:
    """What is in the file. Every fault of it, memory that ran out included, is a line of the report."""
    mark: Fingerprint | None = None
    faults: list[str] = []
    try:
        mark = fingerprint(path)
        with _bounded_memory():
            found = tuple(_Reading(path, faults).found())
        return Report(path, found, tuple(faults), None if found or faults else "nothing wanted in it",
                      fingerprint=mark)
    except Nothing as nothing:
        return Report(path, (), tuple(faults), nothing.fault, isinstance(nothing, _Foreign), mark)
    except MemoryError:
        fault = f"needs more than {MEMORY_LIMIT >> 30} GiB of memory"
    except BadInput as error:
        fault = _fault(error)
    except KcompatError as error:
        fault = str(error)
    except OSError as error:
        fault = error.strerror or str(error)
    return Report(path, (), (*faults, fault), fingerprint=mark)


def kernel_within(path: Path) -> Kernel:
    """Which kernel a boot image is of, whether anything is known of it or not. Raises BadInput."""
    with path.open("rb") as file:
        for kernel in _payloads(file, file.read(_MAX_IMAGE), str(path)):
            if kernel[:4] == ELF_MAGIC:
                with _whole(kernel, str(path)) as inner:
                    return Kernel.from_vmlinux(inner)
    raise BadInput(path, "no boot image with a kernel in it")


def _fault(error: BadInput) -> str:
    if isinstance(error.__cause__, MemoryError):
        return f"needs more than {MEMORY_LIMIT >> 30} GiB of memory"
    return error.fault


class _Reading:
    """One file on its way through its layers: archive, packing, boot image, kernel."""

    def __init__(self, path: Path, faults: list[str]) -> None:
        self._path, self._where, self._faults = path, str(path), faults

    def found(self) -> Iterator[Found]:
        with self._path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(0)
            if not head:
                raise BadInput(self._where, "empty")
            limit = limit_of(self._path.stat().st_size)
            if is_deb(head):
                yield from self._package(entries_of_deb(file, self._where, limit), limit)
            elif head.startswith(RPM_MAGIC):
                yield from self._package(entries_of_rpm(file, self._where, limit), limit)
            elif is_tar(head):
                yield from self._members(entries_of_tar(file, self._where), limit)
            elif is_packed(head):
                yield from self._packed(file, limit)
            else:
                yield from self._plain(self._path, head, self._path)

    def _package(self, entries: Iterable[Entry], limit: int) -> Iterator[Found]:
        """A package has one build: after a kernel that knows its modules' structs too, gigabytes may be left unread."""
        for found in self._members(entries, limit):
            yield found
            if not found.kernel.modules and {o.field for o in found.offsets} >= OWNED:
                return

    def _members(self, entries: Iterable[Entry], limit: int) -> Iterator[Found]:
        for entry in entries:
            head = entry.content.read(_HEAD)
            # A debug package has thousands of modules: told by their ELF type, hardly any is written to disk.
            if not _is_kernel_like(head) or (is_module(head) and module_of(Path(entry.name)) not in OWNERS):
                continue
            with _spooled(head, entry.content, f"{self._where}: {entry.name}", min(limit, _MAX_MEMBER)) as path:
                try:
                    yield from self._plain(path, head, Path(entry.name))
                except Nothing:
                    continue
                except BadInput as error:
                    self._faults.append(f"{entry.name}: {_fault(error)}")

    def _packed(self, file: BinaryIO, limit: int) -> Iterator[Found]:
        stream = unpacked(file, self._where, limit)
        head = _at_least(stream, _HEAD)
        if is_tar(head):
            yield from self._members(entries_of_tar(_Again(head, stream), self._where), limit)
        elif _is_kernel_like(head):
            name = self._path.with_suffix("")
            with _spooled(head, stream, self._where, min(limit, _MAX_MEMBER)) as path:
                yield from self._plain(path, head, name)
        else:
            raise _Foreign(self._where, "packed, and in it neither a kernel nor BTF")

    def _plain(self, path: Path, head: bytes, name: Path) -> Iterator[Found]:
        if head.startswith(ELF_MAGIC):
            yield found_in_elf(path, name, self._faults)
        elif _is_btf(head):
            yield found_in_btf(path, name)
        elif images.is_image(head):
            yield self._image(path, name)
        else:
            raise _Foreign(self._where, "neither a kernel, BTF nor a package of them")

    def _image(self, path: Path, name: Path) -> Found:
        if path.stat().st_size > _MAX_IMAGE:
            raise BadInput(self._where, f"a boot image of over {_MAX_IMAGE >> 20} MiB")
        with path.open("rb") as file:
            image = file.read()
            for kernel in _payloads(file, image, self._where):
                if kernel[:4] == ELF_MAGIC:
                    with _whole(kernel, self._where) as inner:
                        return found_in_elf(inner, name, self._faults)
                if images.is_arm64_image(kernel):
                    image = kernel
                    break
        if not images.banner_within(image):
            raise _Foreign(self._where, "a boot image or an EFI program with no kernel that can be unpacked in it")
        btf = images.btf_within(image)
        if btf is None:
            raise Nothing(self._where, "a kernel without BTF in it")
        with _whole(btf, self._where) as inner:
            return found_in_bare(inner, image, name)


def _payloads(file: BinaryIO, image: bytes, where: str) -> Iterator[bytes]:
    """All that unpacks of a boot image."""
    for start in images.payloads(image):
        file.seek(start)
        yield _payload(file, where)


def _payload(file: BinaryIO, where: str) -> bytes:
    """What unpacks from here: as much as is whole, because what follows a payload may look like damage of it."""
    parts = []
    try:
        stream = unpacked(file, where, 2 * _MAX_IMAGE)
        while part := stream.read(MIB):
            parts.append(part)
            if len(parts) == 1 and not _is_kernel_like(part):
                break
    except BadInput:
        pass
    return b"".join(parts)


def _is_kernel_like(head: bytes) -> bool:
    return head.startswith(ELF_MAGIC) or _is_btf(head) or images.is_image(head)


def _is_btf(head: bytes) -> bool:
    return head[:2] in BTF_MAGICS and head[2:3] == b"\x01"


class _Again:
    """A stream whose first bytes have been looked at."""

    def __init__(self, head: bytes, rest: Readable | None) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            data = self._head if size < 0 else self._head[:size]
            self._head = self._head[len(data):]
            return data
        return self._rest.read(size) if self._rest else b""


def _at_least(stream: Readable, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _whole(data: bytes, where: str) -> AbstractContextManager[Path]:
    return _spooled(data, _Again(b"", None), where, len(data))


@contextmanager
def _spooled(head: bytes, rest: Readable, where: str, limit: int) -> Iterator[Path]:
    """A path to those bytes on disk. The file has no name, so that nothing is left behind, whatever kills us."""
    with tempfile.TemporaryFile(prefix="kcompat-") as file:
        file.write(head)
        while chunk := rest.read(MIB):
            file.write(chunk)
            if file.tell() > limit:
                raise BadInput(where, f"unpacks to more than {limit >> 20} MiB: a decompression bomb?")
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """No more than MEMORY_LIMIT of memory of our own: what a file is mapped to does not count, RLIMIT_AS would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = MEMORY_LIMIT if soft == resource.RLIM_INFINITY else min(soft, MEMORY_LIMIT)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
