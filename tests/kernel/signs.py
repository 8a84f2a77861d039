"""What the running kernel was built with, by signs the guess does not look at: files of other parts of the kernel."""

from pathlib import Path

from kcompat.fields import CATALOGUE, find

BTF = Path("/sys/kernel/btf/vmlinux").exists()
IPV6 = Path("/proc/net/if_inet6").exists()
NET_NS = Path("/proc/self/ns/net").exists()
KPROBES = any(Path(path).exists() for path in
              ("/sys/bus/event_source/devices/kprobe", "/sys/kernel/tracing/kprobe_events"))
UPROBES = any(Path(path).exists() for path in
              ("/sys/bus/event_source/devices/uprobe", "/sys/kernel/tracing/uprobe_events"))

# The struct is there, but no experiment can be made on this kernel: the guess must say that it does not know.
UNTOLD = frozenset([f for f in CATALOGUE if f.struct == "flowi6"] if not IPV6 else []) | frozenset(
    [find("net.ns.inum")] if not NET_NS else [])
