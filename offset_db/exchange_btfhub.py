"""BTFHub's archives: the BTF of one kernel each, in directories that tell distribution, version and machine."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kcompat.btf_types import Btf
from kcompat.errors import BadInput
from kcompat.fields import CATALOGUE, structs
from kcompat.kernel import Kernel, as_text
from kcompat.layout import agreed
from kcompat.offsets import Offset
from offset_db.exchange_names import MACHINES, named_kernel
from offset_db.rows import Remembered, Stored

SUFFIX = ".btf.tar.xz"
XZ_MAGIC = b"\xfd7zXZ\0"
# The largest kernel BTF is 10 MiB; an archive that unpacks to more than this holds something else.
_MAX_BTF = 64 << 20


def archives(directory: Path) -> list[Path]:
    """The archives below a directory, sorted; symbolic links to directories are not followed."""
    return sorted(p for p in directory.rglob(f"*{SUFFIX}") if p.is_file())


def read(path: Path, at: str) -> Remembered:
    """What one archive says of its kernel, recorded `at`. Raises BadInput."""
    data = _unpacked(path)
    found = Btf(data, path).structs(structs(CATALOGUE))
    offsets: list[Offset] = [agreed(f, found.get(f.struct, ()), "btf") for f in CATALOGUE]
    return Remembered(_kernel(path, data), at, at, tuple(Stored(o, at) for o in offsets))


def _kernel(path: Path, data: bytes) -> Kernel:
    """Named by its directories, ``ubuntu/18.04/x86_64/RELEASE.btf.tar.xz``; elsewhere by its BTF, as from_btf does."""
    *_, name, version, machine, file = ("", "", *map(as_text, path.absolute().parts))
    release = file.removesuffix(SUFFIX)
    if machine in MACHINES:
        return named_kernel(release, f"{name}-{version}", machine)
    named = named_kernel(release, "", release.rpartition(".")[2])
    known = named.machine in MACHINES.values()
    return replace(named, build_id="btf-" + hashlib.sha256(data).hexdigest(), machine=named.machine if known else "")


def _unpacked(path: Path) -> bytes:
    try:
        with tarfile.open(path, "r|xz") as archive:
            for member in _regular(archive):
                if member.size > _MAX_BTF:
                    raise BadInput(path, f"its member of {member.size} bytes is no kernel's BTF")
                if member.name.endswith(".btf") and (content := archive.extractfile(member)):
                    return content.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise BadInput(path, f"damaged archive: {error}") from error
    except OSError as error:
        raise BadInput(path, error.strerror or str(error)) from error
    raise BadInput(path, "an archive without a .btf file")


def _regular(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in archive if member.isreg())
