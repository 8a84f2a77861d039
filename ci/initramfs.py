"""The first files of a guest on disk: busybox, the modules its disks need, and an init that puts its root together."""

from __future__ import annotations

import gzip
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

import zstandard

from ci import apt
from ci.apt import FetchError

# What reads the disks, and what makes the read-only ones look writable. What is built in is no module.
WANTED = ("virtio_pci", "virtio_blk", "ext4", "overlay")
# Frames of the kernel's build do not say how large they are, which one-shot zstd insists on.
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda data: zstandard.ZstdDecompressor().stream_reader(data).read(),
}
DISKS = ("/dev/vda", "/dev/vdb")
INIT = """\
#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
no_root() {{
    # By the kernel's own log: what a terminal still holds when init ends is lost in the panic.
    echo "kcompat: no root: the kernel does not $1; it needs virtio_pci, virtio_blk, ext4, overlay, built in or" \\
        "modules" >/dev/kmsg
    exit 1
}}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "kcompat: cannot load $module"
done </modules/order
# PCI is probed in the background.
tries=0
until [ -b {disks[0]} ] && [ -b {disks[1]} ] || [ $tries = 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
mount -t ext4 -o ro {disks[0]} /base && mount -t ext4 -o ro {disks[1]} /own || no_root "mount its disks"
mount -t tmpfs tmpfs /written
mkdir /written/upper /written/work
# The guest's own files before those of the root that all guests of its machine share.
mount -t overlay -o lowerdir=/own:/base,upperdir=/written/upper,workdir=/written/work root /root ||
    no_root "lay one over the other"
# The layers by the names the overlay has them by: before 4.19 uprobes are set in these.
for directory in proc sys dev own base written; do
    mkdir -p "/root/$directory"
    mount -o move "/$directory" "/root/$directory"
done
exec switch_root /root /bin/sh {script}
"""


def make(modules: Path | None, busybox: Path, script: str, work: Path, initramfs: Path) -> None:
    """Writes a cpio archive that hands over to ``script`` in the root. Raises FetchError."""
    tree = work / "initramfs"
    for name in ("base", "bin", "dev", "modules", "own", "proc", "root", "sys", "written"):
        (tree / name).mkdir(parents=True)
    shutil.copy2(busybox, tree / "bin/busybox")
    order = boot_modules(modules)
    for path in order:
        (tree / "modules" / module_name(path)).write_bytes(unpacked(path))
    (tree / "modules/order").write_text("".join(f"{module_name(path)}\n" for path in order))
    (tree / "init").write_text(INIT.format(disks=DISKS, script=script))
    (tree / "init").chmod(0o755)
    pack = 'cd "$1" && find . | cpio --quiet -o -H newc -R 0:0 -O "$2"'
    apt.run(["sh", "-c", pack, "sh", str(tree), str(initramfs)])


def boot_modules(modules: Path | None) -> list[Path]:
    """The modules to load, each after those it needs, from a directory ``lib/modules/RELEASE``. Raises FetchError."""
    if modules is None:
        return []
    if not (modules / "modules.dep").is_file():
        raise FetchError(f"{modules} is no directory of modules: it has no modules.dep")
    command = ["modprobe", "--config", "/dev/null", "--dirname", str(modules.parent.parent.parent)]
    said = apt.run([*command, "--set-version", modules.name, "--show-depends", "--all", *WANTED])
    lines = (line.split() for line in said.splitlines())
    return list(dict.fromkeys(Path(words[1]) for words in lines if words[0] == "insmod"))


def module_name(path: Path) -> str:
    return path.name.partition(".ko")[0] + ".ko"


def unpacked(path: Path) -> bytes:
    """A module as busybox loads it. Raises FetchError for one that is packed in an unknown way, or damaged."""
    try:
        return DECOMPRESS[path.suffix](path.read_bytes())
    except (OSError, EOFError, KeyError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise FetchError(f"{path} is no kernel module that can be unpacked: {error}") from error
