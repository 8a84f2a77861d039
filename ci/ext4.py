"""Directory trees as ext4 images, without mounting anything or being root: every Debian kernel reads ext4."""

from __future__ import annotations

from pathlib import Path

from ci import apt

BLOCK = 4096
# Bitmaps, group descriptors, directories that outgrow their block; the file is sparse, so being generous is free.
SPARE = 64 << 20


def make(tree: Path, image: Path) -> None:
    """Writes ``image``, which must not exist. Raises FetchError with what mke2fs said."""
    size, inodes = _needed(tree)
    # Nothing is ever written: a journal would only be one more thing to read.
    options = ["-q", "-t", "ext4", "-b", str(BLOCK), "-m", "0", "-N", str(inodes), "-O", "^has_journal"]
    apt.run(["mke2fs", *options, "-d", str(tree), str(image), str(size // BLOCK)])


def _needed(tree: Path) -> tuple[int, int]:
    paths = list(tree.rglob("*"))
    # A file of one byte takes a block, and so does a directory; links are counted as often as they are made.
    blocks = sum(1 + path.lstat().st_size // BLOCK for path in paths)
    inodes = len(paths) + 1024
    return blocks * BLOCK * 21 // 20 + inodes * 256 + SPARE, inodes
