"""What the running kernel was built with, by signs the guess does not look at: files of other parts of the kernel."""

import gzip
from pathlib import Path

from guessers.conntrack import TRACKED
from kcompat.fields import CATALOGUE, find

BTF = Path("/sys/kernel/btf/vmlinux").exists()
IPV6 = Path("/proc/net/if_inet6").exists()
NET_NS = Path("/proc/self/ns/net").exists()
KPROBES = any(Path(path).exists() for path in
              ("/sys/bus/event_source/devices/kprobe", "/sys/kernel/tracing/kprobe_events"))
UPROBES = any(Path(path).exists() for path in
              ("/sys/bus/event_source/devices/uprobe", "/sys/kernel/tracing/uprobe_events"))

CONFIG = Path("/proc/config.gz")
BUILT_WITH = set(gzip.decompress(CONFIG.read_bytes()).decode().split("\n")) if CONFIG.exists() else None


def built_with(*options):
    """Whether one of them is in this kernel or a module of it; what tells nothing of itself, as Debian's, has all."""
    return BUILT_WITH is None or not BUILT_WITH.isdisjoint({f"CONFIG_{o}={how}" for o in options for how in "ym"})


TRACKS = NET_NS and built_with("NF_CONNTRACK") and built_with("NF_TABLES_IPV4", "NF_TABLES_INET")

# No experiment can be made on this kernel: the guess must say that it does not know, or prove that it is not there.
UNTOLD = frozenset([f for f in CATALOGUE if f.struct == "flowi6"] if not IPV6 else []) | frozenset(
    [find("net.ns.inum")] if not NET_NS else []) | frozenset([] if TRACKS else TRACKED)
