"""A C header of offsets: the macros that kcompat's own BPF programs read by, one block a kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from kcompat.printable import printable
from kcompat.template import defines
from offset_db.queries import chosen
from offset_db.rows import Remembered

_PRELUDE = """\
/* Offsets of kernel struct fields, in bytes, made by `kcompat db export`.
 * Where it holds several kernels, define the name of one before including it.
 * A field that has no macros is absent, unknown or disputed.
 */
#ifndef KCOMPAT_OFFSETS_H
#define KCOMPAT_OFFSETS_H

"""


def render(remembered: Iterable[Remembered]) -> str:
    """The header. With one kernel alone no name needs to be defined."""
    held = sorted(remembered, key=lambda r: r.kernel.key)
    if len(held) == 1:
        return f"{_PRELUDE}{_block(held[0])}\n#endif\n"
    return _PRELUDE + "".join(_choices(held)) + "\n#endif\n"


def name(key: str) -> str:
    """The macro that chooses the kernel of that key."""
    return "KCOMPAT_KERNEL_" + re.sub(r"\W", "_", key, flags=re.ASCII)


def _choices(held: list[Remembered]) -> Iterator[str]:
    word = "if"
    for r in held:
        yield f"#{word} defined({name(r.kernel.key)})\n{_block(r)}\n"
        word = "elif"
    if held:
        yield '#else\n#error "define KCOMPAT_KERNEL_<key> of a kernel in this header"\n#endif\n'


def _block(remembered: Remembered) -> str:
    kernel, found = remembered.kernel, chosen(remembered)
    sources = ", ".join(sorted({o.source for o in found.values()}))
    # What stands in a file that was imported must not end the comment.
    told = f"{kernel.release} {kernel.machine}, {kernel.key}, from {sources or 'nobody'}".replace("*/", "* /")
    ordered = {field: found[field] for field in sorted(found, key=lambda f: f.macro)}
    return f"/* {printable(' '.join(told.split()))} */\n{defines(ordered)}"
