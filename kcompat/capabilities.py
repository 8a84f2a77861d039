"""What this kernel and this machine can do, asked by doing it: never read off a version number."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kcompat import probe
from kcompat.bpf import cache_dir
from kcompat.errors import Missing
from kcompat.probe import Denied

BTF = Path("/sys/kernel/btf")
LOCKDOWN = Path("/sys/kernel/security/lockdown")
KALLSYMS = Path("/proc/kallsyms")
_BCC = "apt-get install python3-bpfcc"


class Can(StrEnum):
    """Yes, no, can't tell. The third is for a probe that could not be made: it never looks like a "no"."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "can't tell"


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing and whether it is there; `advice` is what to do where it is not, empty when nothing is needed."""

    name: str
    state: Can
    reason: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "state": str(self.state), "reason": self.reason, "advice": self.advice}


Check = Callable[[], Capability]


class Capabilities(Mapping[str, Capability]):
    """Capabilities by name, in the order of `CHECKS`."""

    def __init__(self, found: Sequence[Capability]) -> None:
        self._by_name = {c.name: c for c in found}

    def __getitem__(self, name: str) -> Capability:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def has(self, name: str) -> bool:
        """Whether it is certainly there."""
        return self[name].state is Can.YES


def probe_all(release: str) -> Capabilities:
    """Everything, in some milliseconds. `release` only finds the kernel's own files on disk."""
    return Capabilities([*(_tried(*trial) for trial in _TRIALS), _lockdown(), *_btf(), _headers(release),
                         _kallsyms(), _bcc(), _compiled()])


# What to try, what it is when it works, what to do when it does not.
_TRIALS: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("bpf", probe.bpf_syscall, "a kernel with CONFIG_BPF_SYSCALL; in a container: CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN"),
    ("kprobe", probe.kprobe, "a kernel with CONFIG_KPROBE_EVENTS, or mount tracefs; raw tracepoints do without"),
    ("raw_tracepoint", probe.raw_tracepoint, "Linux 4.17 or later; kprobes do without"),
    ("tracepoint", probe.tracepoint, "Linux 4.7 or later; kprobes do without"),
    ("uprobe", probe.uprobe, "a kernel with CONFIG_UPROBE_EVENTS"),
    ("perf_buffer", probe.perf_buffer, "a kernel with CONFIG_PERF_EVENTS"),
    ("ring_buffer", probe.ring_buffer, "Linux 5.8 or later; perf buffers do without"),
    ("lru_hash", probe.lru_hash, "Linux 4.10 or later; plain hashes do without"),
    ("batch_ops", probe.batch_ops, "Linux 5.6 or later; maps are read entry by entry without"),
    ("probe_read", probe.probe_read, "no lockdown in confidentiality mode"),
    ("probe_read_kernel", probe.probe_read_kernel, "Linux 5.5 or later; bpf_probe_read does without"),
    ("packet_socket", probe.packet_socket, "a kernel with CONFIG_PACKET; in a container: CAP_NET_RAW"),
    ("net_namespaces", probe.net_namespace, "CAP_SYS_ADMIN and CONFIG_NET_NS; without, guesses run in this namespace"),
)


def _tried(name: str, trial: Callable[[], str], advice: str) -> Capability:
    try:
        return Capability(name, Can.YES, trial())
    except Denied as error:
        return Capability(name, Can.UNKNOWN, str(error.strerror), "run it as root" if os.geteuid() else advice)
    except Missing as error:
        # It says itself what to do: "X is not there: do Y".
        reason, _, todo = str(error).partition(": ")
        return Capability(name, Can.NO, reason, todo or advice)
    except OSError as error:
        return Capability(name, Can.NO, error.strerror or str(error), advice)


def _lockdown() -> Capability:
    name = "no_lockdown"
    try:
        text = LOCKDOWN.read_text()
    except FileNotFoundError:
        if LOCKDOWN.parent.is_dir() and any(LOCKDOWN.parent.iterdir()):
            return Capability(name, Can.YES, "this kernel has no lockdown module")
        return Capability(name, Can.UNKNOWN, f"{LOCKDOWN} is not there: no lockdown module, or no securityfs",
                          "mount -t securityfs securityfs /sys/kernel/security")
    except OSError as error:
        return Capability(name, Can.UNKNOWN, f"{LOCKDOWN}: {error.strerror}", "run it as root")
    mode = text.partition("[")[2].partition("]")[0] or text.strip()
    if mode == "none":
        return Capability(name, Can.YES, "lockdown is none")
    if mode == "integrity":
        return Capability(name, Can.YES, "lockdown is integrity: kernel memory may be read, not written")
    return Capability(name, Can.NO, f"lockdown is {mode}: kernel memory may not be read",
                      "boot with lockdown=integrity or lockdown=none")


def _btf() -> Iterator[Capability]:
    yield _present("btf", BTF / "vmlinux", "a BTF or debug file of the same build (--vmlinux), or let kcompat guess")
    conntrack = BTF / "nf_conntrack"
    if conntrack.exists():
        yield Capability("btf_conntrack", Can.YES, f"{conntrack}")
    elif not Path("/sys/module/nf_conntrack").is_dir():
        yield Capability("btf_conntrack", Can.UNKNOWN, "nf_conntrack is not loaded", "modprobe nf_conntrack")
    elif not _is_module("nf_conntrack") and (BTF / "vmlinux").exists():
        yield Capability("btf_conntrack", Can.YES, "nf_conntrack is built in: the kernel's BTF has it")
    else:
        yield Capability("btf_conntrack", Can.NO, f"nf_conntrack is there and {conntrack} is not",
                         "nothing: let kcompat guess")


def _is_module(name: str) -> bool:
    try:
        return any(line.startswith(f"{name} ") for line in Path("/proc/modules").read_text().splitlines())
    except OSError:
        return False


def _present(name: str, path: Path, advice: str) -> Capability:
    if path.exists():
        readable = os.access(path, os.R_OK)
        return Capability(name, Can.YES if readable else Can.UNKNOWN, str(path) if readable else f"{path}: unreadable",
                          "" if readable else "run it as root")
    return Capability(name, Can.NO, f"{path} is not there", advice)


def _headers(release: str) -> Capability:
    for path in (Path(f"/lib/modules/{release}/build"), Path("/sys/kernel/kheaders.tar.xz")):
        if path.exists():
            return Capability("kernel_headers", Can.YES, str(path))
    return Capability("kernel_headers", Can.NO, f"no /lib/modules/{release}/build", "nothing: kcompat needs none")


def _kallsyms() -> Capability:
    name, advice = "kallsyms", "run it as root, with sysctl kernel.kptr_restrict=0"
    try:
        with KALLSYMS.open() as file:
            shown = any(int(line.split(maxsplit=1)[0], 16) for line, _ in zip(file, range(64), strict=False))
    except FileNotFoundError:
        return Capability(name, Can.NO, f"{KALLSYMS} is not there", "a kernel with CONFIG_KALLSYMS; not needed so far")
    except (OSError, ValueError) as error:
        return Capability(name, Can.UNKNOWN, f"{KALLSYMS}: {error}", advice)
    return Capability(name, Can.YES, "addresses are shown") if shown else Capability(
        name, Can.NO, "its addresses read as 0", advice)


def _bcc() -> Capability:
    """Looked for, not imported: that would load LLVM. PyPI has an unrelated package of the same name."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or not spec.submodule_search_locations:
        return Capability("bcc", Can.NO, "python3-bpfcc is not installed, or not visible to this Python", _BCC)
    where = Path(spec.submodule_search_locations[0])
    if not (where / "libbcc.py").exists():
        return Capability("bcc", Can.NO, f"{where} is another package called bcc",
                          f"pip uninstall bcc; {_BCC}")
    return Capability("bcc", Can.YES, str(where))


def _compiled() -> Capability:
    """Whether compiled programs are kept from earlier runs; without bcc, they are all that can be loaded."""
    path = cache_dir()
    try:
        count = sum(1 for p in path.iterdir() if p.suffix == ".json")
    except FileNotFoundError:
        count = 0
    except OSError as error:
        return Capability("compiled_cache", Can.UNKNOWN, f"{path}: {error.strerror}", "run it as root")
    if count:
        return Capability("compiled_cache", Can.YES, f"{count} compiled programs in {path}")
    return Capability("compiled_cache", Can.NO, f"{path} is empty", "nothing: the first guess fills it")
