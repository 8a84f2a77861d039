"""Every program we load, in the BPF of every kernel we go down to: the old kernels themselves are not at hand."""

import pytest

from collector import nf_conn, tls_hooks
from collector.config import Options
from collector.datasets import bash, httpflow, httpflow_hooks, netflow
from collector.datasets.netflow_hooks import HOOKS
from guessers import hooks, memory
from kcompat.bpf import compile_source
from kcompat.dialect import DIALECTS, check, release_of
from kcompat.fields import CATALOGUE
from kcompat.offsets import Offset, Offsets

# Where fields lie says nothing of what an old verifier takes, as long as none is missing.
OFFSETS = Offsets([Offset.known(f, 8 * (i + 1), "test", width=f.width) for i, f in enumerate(CATALOGUE)])
SETS = {"netflow": HOOKS, "httpflow": httpflow_hooks.HOOKS, "nf_conn": nf_conn.HOOKS}
RAW_TRACEPOINTS, SEND_LENGTH, THREADS_OF_CGROUPS = (4, 17), (6, 3), (6, 10)


@pytest.fixture(scope="module")
def compiled():
    return {"memory": compile_source(memory.source()),
            "netflow": compile_source(netflow.render(OFFSETS, Options("box"))),
            "httpflow": compile_source(httpflow.render(OFFSETS, Options("box"))),
            "bash": compile_source(bash.render(Offsets(), Options("box"))),
            "nf_conn": compile_source(nf_conn.render(OFFSETS))}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("which", ["memory", "netflow", "httpflow", "bash", "nf_conn"])
def test_what_has_hooks_there_loads_there(compiled, which, dialect):
    fits = check(compiled[which], dialect)
    assert fits
    expected = {f.program for f in fits if must_load(f.program, which, release_of(dialect))}
    assert {f.program: f.refusals for f in fits if f.program in expected and not f.loads} == {}


def must_load(program, which, release):
    """Probes always, raw tracepoints where there are any; a dataset's second set only where all of it has hooks.

    What cgroups are told, where it is said which thread that is.
    """
    if program.startswith("cgroup"):
        return release >= THREADS_OF_CGROUPS
    if not program.startswith("rawtp"):
        return True
    only_second = which in SETS and program not in {h.program for h in SETS[which]["kprobe"]}
    return release >= (SEND_LENGTH if only_second else RAW_TRACEPOINTS)


def test_every_program_is_hooked_somewhere(compiled):
    known = {h.program for h in hooks.HOOKS}.union(*(
        {h.program for h in table} for sets in SETS.values() for table in sets.values()))
    triggers = {"rawtp__read", "kprobe__read", bash.PROGRAM, *httpflow_hooks.STAGES} | tls_hooks.PROGRAMS
    assert {p.name for o in compiled.values() for p in o.programs} <= known | triggers


def test_sizes_stay_far_from_the_oldest_limits(compiled):
    fits = [f for one in compiled.values() for f in check(one, "4.4")]
    assert max(f.instructions for f in fits) <= 4000  # of 4,096
    assert max(f.stack for f in fits) <= 512
    # Of 32,768; where there are raw tracepoints, of four times as many.
    assert max(f.visited for f in fits if not f.program.startswith("rawtp")) <= 20_000
