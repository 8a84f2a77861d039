"""Results as text for a terminal, and as docs/performance.md."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.measure import HEADINGS, REPOSITORY, Line, Result

DOCS = REPOSITORY / "docs" / "performance.md"
_WIDE = 170  # where nobody tells: a pipe or a log
_COLOURS = {"PASS": "green", "short of target": "red", "": ""}

_HEAD = """\
# Performance

Written by `sudo .venv/bin/python -m benchmarks --write-docs`; do not edit.

Measured on {date}, kernel {kernel}, {machine}; {repetitions} repetitions. Every measurement of ours is the first
thing a fresh interpreter does, with files in the page cache; imports are counted apart. p95 of so few repetitions is
close to the worst of them. Before each repetition the benchmark waits a little for a moment in which nobody else is at
work; how often there was none is said below.
"""

_GUESS = """\
The rival is a sequential scan in the manner of tcptracer-bpf (2017), the ancestor of the guessers in use: one
`bpf_probe_read` of one offset an event, a new TCP connection for each offset, one byte further until the value is the
expected one, first match final, the struct net pointer and the number behind it nested. It is written anew in
`benchmarks/sequential.py` and `sequential.bpf.c`, in Python as ours is. The scan looks for saddr, daddr, family,
sport, dport, and netns with its number: {rival_fields} offsets. The guess looks for the {fields} of the catalogue,
IPv6, TCP state and routing keys among them. BTF is read afterwards, to say who is right; neither sees it.

Where we are not, or hardly, better:
- **Wall time on a quiet loopback.** A connection costs {connection_ms} ms here, so that {connections:.0f} of them take
  {rival_ms:.0f} ms; our sampling and solving take {thinking_ms:.0f} ms. What the scan pays is connections: each fires
  every hook on the machine, takes a port, and may be missed on a busy one. Our time is Python's, and goes into many
  more fields and into evidence for each.
- **Compiling.** The scan ships compiled; ours compiles once per machine type and kernel version number
  ({compile_ms:.0f} ms), then finds the object in its cache.
- **One unlucky guess.** Where small values happen to be equal the guess makes another round; p95 shows it.
"""

_RESOLVE = """\
A hit opens the database, reads it, loads the hooks, makes a few sockets and compares every remembered offset with what
stands there; the first of a day also writes down that it did, and waits for the disk. bpftool and pahole answer another
question (all types; whole structs), they are here because they are what one reaches for.

Where we are slower: process against process. Those are C programs; ours starts an interpreter and imports, and that
takes longer than the work. Where there is BTF and no Python at hand, pahole is the quicker way to one struct.
"""

_STARTUP = """\
Until it counts: the offsets are remembered and proved by an event, every program is loaded and hooked, and connections
of kcompat's own have come out of them as they were. The rivals count events at one tracepoint, need no offsets and
prove nothing; bpftrace compiles its program with LLVM in the process that then runs, which is most of its memory.
Where we are slower: a third of our time is Python's imports, another the kernel's verifier over httpflow's programs.
"""

_DELIVERY = """\
Every flow has a peer of its own, which is the most there can be to spell, and of a third of those that fit the name is
known; its own end is one of 5,000 processes, with Kubernetes in a pod each, which doubles its tags. Aggregated: from
what each socket did to one point per flow; told: which pods and services are at its ends; spelled: line protocol, in
requests of 512. influxdb-client spells the same points, made already (20,000 of them, times ten), and nothing else.
Memory is the whole process's, its interpreter and the text of a request among it. Times are of the processor.

A million connections of which each is a flow take what the table says, compressed requests included. Those that share
flows are only added up, and those that come and go within an interval the kernel adds up itself: all that look alike
are one row. What it takes to read the rows from the kernel's maps comes on top (`docs/netflow.md`).
"""

_RELIABILITY = """\
Each guess stands alone: a namespace, connections and memory of its own, and no database. Right is what BTF says, which
no guess has seen. Slow ones made another round of experiments, because what they had left a field open.
"""

_BTF = """\
Every field is compared with what libbpf says of it. The targets are of the work itself; a C program that has libbpf
find the same structs is through sooner than our interpreter has started.
"""

_DWARF = """\
Whole processes, interpreter and imports included; all but plain pyelftools read the whole catalogue, and each rival
is compared in every field it answers for. pahole loads all types before it prints one. drgn indexes every unit on all
processors and can then answer anything; ours looks for the structs of the catalogue alone. So a second question costs
drgn nothing and us a little more.
"""

_HARVEST = """\
The files are the running kernel's BTF with the members of five nested structs moved, another layout each. "1 worker" is
the same command with `--jobs 1`: one process reads, and the one that started it commits, each on a processor of its
own. With two workers three processes share two processors, so what the committing one takes bounds the gain; on a
machine where others are at work there is nothing to gain.
"""

_DATABASE = """\
Made, not collected: releases, layouts and their changes are random with a fixed seed, every kernel has all fields.
Each look-up is of another kernel.
"""

_HTTP_OVERHEAD = """\
wrk, nginx and the collector share the processors, so what one takes the others lack. In each repetition nobody looks
first, then each observer in turn. bpftrace counts system calls by process name and reads none of their bytes; `apt-get
install bpftrace`. The stream is two threads of one process, 256 KiB a call. Latency is nginx's for a response that its
upstream makes after 50 ms, beside its own `$request_time`.
"""

_MATRIX = """\
Of the last `python -m ci run` or `make matrix` on this machine: every step runs in a guest whose processor is emulated.
Most of it is Python starting and importing, some ten to twenty times as slow as on the machine itself; two guests at
once share two processors. Where we would be slow without a cache: clang in a guest, which is why the programs are
compiled before the boot. An object depends on the offsets and the machine type, not on the kernel's version, so that
kernels whose fields lie alike share it.
"""

_SOAK = """\
The load counts what it does call by call: HTTP/1.1, TLS, connections of a moment, datagrams, DNS over UDP and TCP,
lines typed into bash. Meanwhile one sink fails in turns (503, silence, refusal), one is a black hole and one a full
disk; namespaces with traffic in them come and go; bash and libssl are replaced; SIGHUPs bring other configurations. At
the end the sums over all points must be what the load counted, and the failing sink must have every point. The slope is
the median of those between any two minutes. Ten minutes here; `sudo .venv/bin/python -m benchmarks.soak` takes two
hours. It says nothing of somebody else's traffic, which the collector sees too: what others lose is counted as lost.
"""

_TEXTS = {"btf": _BTF, "database": _DATABASE, "delivery": _DELIVERY, "dwarf": _DWARF,
          "guess": _GUESS, "harvest": _HARVEST,
          "http_overhead": _HTTP_OVERHEAD,
          "matrix": _MATRIX, "reliability": _RELIABILITY, "resolve": _RESOLVE, "soak": _SOAK,
          "startup": _STARTUP}


def text(results: Iterable[Result]) -> str:
    """Tables for people."""
    console = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    with console.capture() as capture:
        console.print(f"{os.uname().release}, {machine()}")
        for result in results:
            console.print(f"\n[bold]{escape(result.title)}[/bold]  (load {_load(result)})")
            table = Table(box=None, pad_edge=False)
            for heading in HEADINGS:
                table.add_column(heading, justify="right" if heading in ("median", "p95") else "left")
            for line in result.lines:
                colour = _COLOURS[line.verdict]
                table.add_row(*map(escape, line.cells()), style=colour or None)
            console.print(table)
            for remark in result.remarks:
                console.print(f"  {escape(remark)}")
    return capture.get()


def markdown(results: Sequence[Result], repetitions: int) -> str:
    head = _HEAD.format(date=time.strftime("%Y-%m-%d"), kernel=os.uname().release, machine=machine(),
                        repetitions=repetitions)
    return head + "".join(map(_section, results))


def renewed(page: str, results: Iterable[Result], repetitions: int) -> str:
    """The page with these sections anew, or behind all others; each says when it was measured, unlike the head."""
    date = time.strftime("%Y-%m-%d")
    when = f"Measured by itself on {date}, kernel {os.uname().release}, {repetitions} repetitions. "
    for result in results:
        begin = page.find(f"\n## {result.title}\n")
        end = page.find("\n## ", begin + 1) if begin >= 0 else -1
        page = (page if begin < 0 else page[:begin]) + _section(result, when) + (page[end:] if end >= 0 else "")
    return page


def _section(result: Result, when: str = "") -> str:
    if not result.lines:
        return "".join([f"\n## {result.title}\n\n", *(f"- {remark}\n" for remark in result.remarks)])
    parts = [f"\n## {result.title}\n\n{when}Load {_load(result)}.\n\n", _row(HEADINGS), _row("---" for _ in HEADINGS),
             *(_row(line.cells()) for line in result.lines), "\n"]
    parts += [*(f"- {remark}\n" for remark in result.remarks), "\n"] if result.remarks else []
    parts.append(_TEXTS[result.name].format(**_figures(result)))
    return "".join(parts)


def machine() -> str:
    """``2 processors (Intel(R) Xeon(R) ...), x86_64``."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    model = f" ({found[1]})" if found else ""
    return f"{len(os.sched_getaffinity(0))} processors{model}, {os.uname().machine}"


def _figures(result: Result) -> dict[str, object]:
    """The numbers the prose of the guess quotes: it cannot say what the table does not."""
    if result.name != "guess":
        return {}
    by_name: dict[str, Line] = {line.what: line for line in result.lines}
    rival, connections = by_name["sequential scan: whole"], by_name["sequential scan: TCP connections"]
    return {
        "rival_fields": rival.note.split()[0],
        "fields": by_name["guess, object cached: whole"].note.split()[0],
        "rival_ms": rival.median,
        "connections": connections.median,
        "connection_ms": f"{rival.median / connections.median:.2f}",
        "thinking_ms": by_name["guess, object cached: sampling + solving"].median,
        "compile_ms": by_name["guess, nothing cached: compile"].median,
    }


def _load(result: Result) -> str:
    return (f"{result.load[0]:.2f} before, {result.load[1]:.2f} after; {result.busy} of {result.begun} repetitions "
            "began while others were at work")


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
