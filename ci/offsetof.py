"""What the compiler says of a kernel's layouts: offsetof and sizeof, in an object built as the kernel's own are."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from elftools.elf.elffile import ELFFile

Layout: TypeAlias = dict[str, tuple[int, int] | None]
"""(offset, size) in bytes of each field; None where the struct has no such member."""
HEADERS = ("linux/fdtable.h", "linux/fs.h", "linux/net.h", "linux/sched.h", "linux/skbuff.h", "linux/socket.h",
            "linux/tcp.h", "linux/uio.h", "net/flow.h", "net/inet_sock.h", "net/net_namespace.h",
            "net/netfilter/nf_conntrack.h", "net/netfilter/nf_conntrack_tuple.h", "net/sock.h")
# Goes into the key of the kernels that are asked: to be raised when the answer becomes another.
RECIPE = 1
_LIKE = "net/ipv4/.tcp.o.cmd"
_DEADLINE_S = 120.0
_SYMBOL = "kcompat_layout"
_ERROR = re.compile(r"^(\S+?):(\d+):\d+: (?:fatal )?error: (.*)", re.MULTILINE)
_NOT_THERE = ("has no member named", "undefined type", "incomplete")


class UnaskedError(Exception):
    """The compiler could not be asked; the message is what it said."""


def ask(catalogue: Mapping[str, Sequence[str]], output: Path) -> Layout:
    """The layout of ``STRUCT.MEMBER`` by the member paths each may have, newest first.

    ``output`` is where a kernel was built: its TCP was compiled with the command that is used here again. Raises
    UnaskedError.
    """
    compiler = _command((output / _LIKE).read_text())
    asked = [(name, path) for name, paths in catalogue.items() for path in paths]
    with tempfile.TemporaryDirectory(prefix="kcompat-offsetof-") as temporary:
        directory = Path(temporary)
        # What one error hides, the next attempt shows.
        for _ in range(len(asked)):
            (directory / "layout.c").write_text(_source(asked))
            command = f"{compiler} -o {directory}/layout.o {directory}/layout.c"
            done = subprocess.run(["sh", "-c", command], cwd=output, stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, check=False, env={**os.environ, "LC_ALL": "C"}, timeout=_DEADLINE_S)
            if done.returncode == 0:
                return dict.fromkeys(catalogue) | _read(directory / "layout.o", asked)
            asked = _without_refused(asked, done.stderr)
    raise UnaskedError("not one field of the catalogue could be asked for")


def answers(layout: Layout, fields: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fields as ``kcompat resolve --json`` has them, with the compiler's answer instead of their own."""
    return [dict(field) | _answer(layout[f"{field['struct']}.{field['member']}"]) for field in fields]


def _answer(place: tuple[int, int] | None) -> dict[str, Any]:
    told: dict[str, Any] = {"source": "compiler", "bit_offset": None, "confidence": 1.0, "reason": None}
    if place is None:
        return told | {"state": "absent", "verdict": "absent", "offset": None, "width": None, "candidates": [],
                       "reason": "the compiler knows no such member"}
    offset, width = place
    return told | {"state": "known", "verdict": "ok", "offset": offset, "width": width, "candidates": [offset]}


def _command(said: str) -> str:
    """The compiler and its options, from what kbuild keeps beside an object: ``cmd_OBJECT := COMMAND -o ...``."""
    first = re.match(r"(?:saved)?cmd_\S+ := (.*?) -c -o ", said)
    if first is None:
        raise UnaskedError(f"{_LIKE} holds no compiler's command")
    return re.sub(r" -Wp,-MM?D,\S+", "", first[1]) + " -c"


def _source(asked: Sequence[tuple[str, str]]) -> str:
    """A line for each question, so that the number of a line with an error is the question's."""
    lines = [f"#include <{header}>" for header in HEADERS]
    lines += [f"const unsigned int {_SYMBOL}[][2] = {{", '#line 1 "layout.c"']
    for name, path in asked:
        of = f"struct {name.partition('.')[0]}"
        # Not offsetof: an error in a macro is told where that was defined.
        lines.append(f"{{ __builtin_offsetof({of}, {path}), sizeof((({of} *)0)->{path}) }},")
    return "\n".join([*lines, "};", ""])


def _without_refused(asked: Sequence[tuple[str, str]], complaint: str) -> list[tuple[str, str]]:
    refused = set()
    for file, number, text in _ERROR.findall(complaint):
        if file != "layout.c" or not any(words in text for words in _NOT_THERE):
            raise UnaskedError(f"{file}: {text}")
        refused.add(int(number))
    if not refused:
        raise UnaskedError(complaint.strip()[-500:])
    return [question for number, question in enumerate(asked, 1) if number not in refused]


def _read(path: Path, asked: Sequence[tuple[str, str]]) -> Layout:
    with path.open("rb") as file:
        elf: Any = ELFFile(file)
        (symbol,) = elf.get_section_by_name(".symtab").get_symbol_by_name(_SYMBOL)
        data = elf.get_section(symbol["st_shndx"]).data()[symbol["st_value"]:][: symbol["st_size"]]
    places = struct.iter_unpack("<II", data)
    found: Layout = {}
    for (name, _), (offset, size) in zip(asked, places, strict=True):
        found.setdefault(name, (offset, size))
    return found


def save(layout: Layout, path: Path) -> None:
    path.write_text(json.dumps(layout, indent=1))


def load(path: Path) -> Layout:
    return {name: place and (place[0], place[1]) for name, place in json.loads(path.read_text()).items()}
