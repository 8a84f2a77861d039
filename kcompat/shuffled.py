"""Whether a file is of a kernel that GCC's RANDSTRUCT plugin shuffled, and tells its structs in their order before."""

from __future__ import annotations

import re

from kcompat.elf import Data, Elf
from kcompat.kernel import BANNER
from kcompat.layout import Struct

SHUFFLED = ("this kernel's structs were shuffled by GCC's RANDSTRUCT plugin, and GCC's debug information has the order "
            "of the source: only a guess on the running kernel can tell")
UNTOLD = ("this is debug information kept apart, without what tells whether GCC's RANDSTRUCT plugin has shuffled the "
          "kernel's structs: give the file that it was taken from")
# Of it RANDSTRUCT makes all between two marks an anonymous struct (include/linux/compiler_types.h), with this in it.
# 4.13 and some of 4.14 have that struct without RANDSTRUCT as well.
TASK, _AMONG_SHUFFLED = "task_struct", "files"

# In the vermagic string of a kernel whose structs are shuffled, and of its modules (include/linux/vermagic.h).
_RANDSTRUCT = re.compile(rb"RANDSTRUCT_(?:PLUGIN_)?[0-9a-f]{16}")
_STRINGS = (".rodata", ".modinfo")


def by_gcc(elf: Elf, data: Data) -> bool:
    """Whether it says so itself. What clang shuffles it tells as it is."""
    return _said(elf, data, _RANDSTRUCT) is not None and b"clang version" not in (_said(elf, data, BANNER) or b"")


def is_kept_apart(elf: Elf) -> bool:
    """Whether what would say so has no bytes, as ``objcopy --only-keep-debug`` and eu-strip leave it."""
    return any(s.name in _STRINGS and s.is_empty_here for s in elf.sections)


def is_in_order(task: Struct | None) -> bool:
    """Whether this ``struct task_struct`` is of a kernel without RANDSTRUCT; False where it cannot be told."""
    return task is not None and any(member.name == _AMONG_SHUFFLED for member in task.members or ())


def _said(elf: Elf, data: Data, pattern: re.Pattern[bytes]) -> bytes | None:
    sections = (s for name in _STRINGS if (s := elf.find(name)) and s.size)
    hits = (pattern.search(data, s.offset, s.offset + s.size) for s in sections)
    return next((hit[0] for hit in hits if hit), None)
