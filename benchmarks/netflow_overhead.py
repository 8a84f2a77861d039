"""What netflow costs the traffic that it counts, beside a bpftrace byte counter and bcc's tools.

``sudo python -m benchmarks.netflow_overhead``: the same loads with nothing attached and with each, in an order drawn
anew each round, so that what else the machine does falls on all of them alike. `empty` is programs that do nothing,
where netflow's are: its loss is the kernel's way to a program, which none can do without, and what a run of them seems
to take is the kernel's own clock of programs. Taken off, the runs of the others are a share of what moves the bytes,
which a busy machine disturbs less than the loss of throughput.

``python -m benchmarks.netflow_overhead_guest`` runs it in a kernel that has kprobes.
"""

from __future__ import annotations

import argparse
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple

from benchmarks.measure import children_s
from benchmarks.netflow_overhead_attached import EMPTY, NOBODY, attached, counting, everybody, spent
from benchmarks.netflow_overhead_loads import Load, loads


class Measured(NamedTuple):
    """Units in a second of processor time, ns that a run of the programs took, and runs for a unit."""

    rate: float
    run_ns: float
    runs: float


Results = dict[tuple[str, str], list[Measured]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--stream-mb-a-second", type=int, default=2000,
                        help="what iperf3 is given to move, for each of the seconds")
    told = parser.parse_args()
    with loads(told.stream_mb_a_second * 10**6) as known:
        who = everybody()
        print(f"load of the machine {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors, "
              f"kernel {os.uname().release}, {told.rounds} rounds of {told.seconds:g} s", flush=True)
        results = measured(known, who, told.rounds, told.seconds)
        for name, load in known.items():
            print("\n".join(["", *table(results, who, name, load)]))


def measured(known: Mapping[str, Load], who: Sequence[str], rounds: int, seconds: float) -> Results:
    """Each round's; what others' traffic makes the programs run is in their costs."""
    found: Results = defaultdict(list)
    for _ in range(rounds):
        for name in random.sample(who, len(who)):
            with attached(name) as programs:
                for kind, load in known.items():
                    units, spent_s = _once(load, seconds)
                    count, ns, counted = 0, 0, 1.0
                    if programs:
                        with counting():
                            before = spent(programs)
                            counted, _ = _once(load, seconds / 2)
                            count, ns = (after - was for after, was in zip(spent(programs), before, strict=True))
                    found[name, kind].append(Measured(units / spent_s, ns / max(count, 1), count / counted))
    return found


def _once(load: Load, seconds: float) -> tuple[float, float]:
    """Units, and both ends' processor time for them: how fast they go by the clock is others' doing as well."""
    before = children_s()
    units = load.run(seconds)
    return units, children_s() - before


def table(results: Results, who: Iterable[str], kind: str, load: Load) -> Iterator[str]:
    """Markdown. A loss is each round's own difference from nothing: what else a machine does then is in both."""
    yield f"| {load.title}: attached | {load.unit} a processor second | loss | quarter to three | ns a run | share |"
    yield "| --- | --- | --- | --- | --- | --- |"
    bare = results[NOBODY, kind]
    for name in who:
        told = results[name, kind]
        losses = [100 * (1 - one.rate / other.rate) for one, other in zip(told, bare, strict=True)]
        low, _, high = quantiles(losses, n=4, method="inclusive") if len(losses) > 1 else losses * 3
        yield (f"| {name} | {median(one.rate for one in told) / load.units:.0f} | {median(losses):+.1f} % | "
               f"{low:+.1f} to {high:+.1f} % | {median(one.run_ns for one in told):.0f} | "
               f"{100 * share(told, results[EMPTY, kind], bare):.1f} % |")


def share(told: Sequence[Measured], empty: Sequence[Measured], bare: Sequence[Measured]) -> float:
    """Of the processor time that a unit takes with nothing attached, what the programs' runs for it are."""
    run_ns = max(0.0, median(one.run_ns for one in told) - median(one.run_ns for one in empty))
    return run_ns * median(one.runs for one in told) * median(one.rate for one in bare) / 1e9


if __name__ == "__main__":
    main()
