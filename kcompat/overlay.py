"""Where a file of an overlay really lies: kernels before 4.19 set uprobes in the files of its layers alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kcompat.errors import Missing

PROC = Path("/proc")
_DELETED = " (deleted)"
_OCTAL = re.compile(r"\\([0-7]{3})")
_LAYER = re.compile(r"(?:\\.|[^:\\])+")


class Overlay(NamedTuple):
    """A mounted overlay: `root` of it is seen at `point`; its layers, that which is written to first."""

    root: str
    point: str
    layers: tuple[str, ...]


def overlays(mountinfo: str) -> dict[int, Overlay]:
    """Those of a /proc/PID/mountinfo, by the number of their mount."""
    found = {}
    for line in mountinfo.splitlines():
        words, _, rest = line.partition(" - ")
        kind, _, rest = rest.partition(" ")
        if kind in ("overlay", "overlayfs"):
            number, _, _, root, point, *_ = words.split(" ")
            found[int(number)] = Overlay(_plain(root), _plain(point), _layers(rest.rpartition(" ")[2]))
    return found


def _layers(options: str) -> tuple[str, ...]:
    """What is no separator is escaped twice: a comma by the kernel, a colon by who mounted it."""
    values: dict[str, str] = {}
    for option in options.split(","):
        name, _, value = option.partition("=")
        values[name] = _plain(value)
    upper, lower = values.get("upperdir", ""), _LAYER.findall(values.get("lowerdir", ""))
    return tuple(re.sub(r"\\(.)", r"\1", layer) for layer in ([upper] if upper else []) + lower)


def _plain(text: str) -> str:
    r"""``\040`` is a space: bytes of a name, each escaped for itself."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def beneath(path: str, proc: Path = PROC, file: int | None = None) -> str | None:
    """The file of a layer that an overlay shows at this path, which may lead through /proc/PID; None on no overlay.

    `file` is a descriptor of it where the path may lead elsewhere by now: then the path tells only whose mounts to ask.
    Raises OSError, Missing where its layers are not to be seen.
    """
    fd = os.open(path if file is None else f"{proc}/self/fd/{file}", os.O_PATH | os.O_CLOEXEC)
    try:
        number = int(re.findall(r"^mnt_id:\s*(\d+)", (proc / f"self/fdinfo/{fd}").read_text(), re.MULTILINE)[0])
        shown = str((proc / f"self/fd/{fd}").readlink()).removesuffix(_DELETED)
        is_what = _signs(os.fstat(fd))
    finally:
        os.close(fd)
    overlay = _overlay(path, number, proc)
    if overlay is None:
        return None
    within = Path(overlay.root) / os.path.relpath(shown, overlay.point)
    # Of a container that is told of the machine's processes, the layers lie in the machine's own namespace.
    for seen_from in ("", f"{proc}/1/root"):
        for layer in overlay.layers:
            there = f"{seen_from}{layer}{within}"
            with suppress(OSError):
                if layer.startswith("/") and _signs(Path(there).stat()) == is_what:
                    return beneath(there, proc) or there
    raise Missing(f"{shown} lies on an overlay whose layers are not to be seen from here")


def _overlay(path: str, number: int, proc: Path) -> Overlay | None:
    """The mount of that number, in the namespace of the process the path leads through or in ours."""
    for process in _processes(path, proc):
        with suppress(OSError):
            there = overlays(os.fsdecode((proc / process / "mountinfo").read_bytes())).get(number)
            if there:
                # Mounts are told as from the root of the process, files as from ours.
                root = (proc / process / "root").readlink()
                return there._replace(point=str(root / there.point.lstrip("/")))
    return None


def _processes(path: str, proc: Path) -> Iterator[str]:
    if through := re.match(rf"{re.escape(str(proc))}/(\d+)/", path):
        yield through[1]
    yield "self"


def _signs(found: os.stat_result) -> tuple[int, int, int]:
    """What is the same of a file and of what is beneath it, by any kernel; numbers of inodes are not."""
    return found.st_mode, found.st_size, found.st_mtime_ns
