"""Every program we load, in the BPF of every kernel we go down to: the old kernels themselves are not at hand."""

import random

import pytest

from collector import nf_conn, tls_hooks
from collector.config import Options
from collector.datasets import bash, httpflow, httpflow_hooks, netflow
from collector.datasets.netflow_hooks import HOOKS
from guessers import hooks, memory
from kcompat.bpf import compile_source
from kcompat.compile_apart import compile_apart
from kcompat.dialect import DIALECTS, check, release_of
from kcompat.fields import CATALOGUE
from kcompat.instructions import CALL, JMP, STACK, decode, deepest
from kcompat.offsets import Offset, Offsets
from tests.guessers import corpus


def offsets(places):
    return Offsets([Offset.known(field, at, "test", width=field.width) for field, at in places.items()])


# Fields close together, and as they lie in a real kernel, where one read does not reach all of a struct's.
OFFSETS = offsets({field: 8 * (number + 1) for number, field in enumerate(CATALOGUE)})
APART = "5.10.0-46-kprobe"
PROBE_READ = 4
SETS = {"netflow": HOOKS, "httpflow": httpflow_hooks.HOOKS, "nf_conn": nf_conn.HOOKS}
RAW_TRACEPOINTS, SEND_LENGTH, THREADS_OF_CGROUPS = (4, 17), (6, 3), (6, 10)


def real(name):
    return offsets({field: at for field, at in corpus.answers(name).items() if at is not None})


@pytest.fixture(scope="module")
def compiled():
    return {"memory": compile_source(memory.source()),
            "netflow": compile_source(netflow.render(OFFSETS, Options("box"))),
            f"netflow {APART}": compile_source(netflow.render(real(APART), Options("box"))),
            "httpflow": compile_source(httpflow.render(OFFSETS, Options("box"))),
            "bash": compile_source(bash.render(Offsets(), Options("box"))),
            "nf_conn": compile_source(nf_conn.render(OFFSETS))}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("which", ["memory", "netflow", f"netflow {APART}", "httpflow", "bash", "nf_conn"])
def test_what_has_hooks_there_loads_there(compiled, which, dialect):
    fits = check(compiled[which], dialect)
    assert fits
    expected = {f.program for f in fits if must_load(f.program, which.split()[0], release_of(dialect))}
    assert {f.program: f.refusals for f in fits if f.program in expected and not f.loads} == {}


def must_load(program, which, release):
    """Probes always, raw tracepoints where there are any; a dataset's second set only where all of it has hooks.

    What cgroups are told, where it is said which thread that is.
    """
    if program.startswith("cgroup"):
        return release >= THREADS_OF_CGROUPS
    if not program.startswith("rawtp"):
        return True
    return release >= (SEND_LENGTH if is_only_second(program, which) else RAW_TRACEPOINTS)


def is_only_second(program, which):
    return which in SETS and program not in {h.program for h in SETS[which]["kprobe"]}


def test_every_program_is_hooked_somewhere(compiled):
    known = {h.program for h in hooks.HOOKS}.union(*(
        {h.program for h in table} for sets in SETS.values() for table in sets.values()))
    triggers = {"rawtp__read", "kprobe__read", bash.PROGRAM, *httpflow_hooks.STAGES} | tls_hooks.PROGRAMS
    assert {p.name for o in compiled.values() for p in o.programs} <= known | triggers


def test_sizes_stay_far_from_the_oldest_limits(compiled):
    which_fits = [(which.split()[0], f) for which, one in compiled.items() for f in check(one, "4.4")]
    fits = [f for _, f in which_fits]
    # Of 4,096, which from 5.2 on are a million: raw tracepoints of second sets need 6.3.
    assert max(f.instructions for which, f in which_fits
               if not (f.program.startswith("rawtp") and is_only_second(f.program, which))) <= 4000
    assert max(f.stack for f in fits) <= 512
    # Of 32,768; where there are raw tracepoints, of four times as many.
    assert max(f.visited for f in fits if not f.program.startswith("rawtp")) <= 22_000


@pytest.mark.parametrize("name", corpus.NAMES)
def test_what_is_looked_at_with_every_event_takes_two_reads_however_it_lies(name):
    one = next(program for program in compile_source(netflow.render(real(name), Options("box"))).programs
               if program.name == "rawtp__tcp_retransmit_skb")
    reads = [i for i in decode(one) if i.group == JMP and i.operation == CALL and i.immediate == PROBE_READ]
    # One is the count of retransmissions, three are of the ends of a socket that sends a SYN again.
    assert len(reads) - 4 in (1, 2)


@pytest.mark.parametrize("seed", range(2))
def test_however_fields_lie_the_stack_has_room(seed):
    draw = random.Random(seed)
    sizes = {"sock_common": 136, "tcp_sock": draw.choice((300, 600, 2400))}
    apart = offsets({field: draw.randrange(0, sizes.get(field.struct, 600), min(field.width, 8))
                     for field in CATALOGUE})
    for one in (netflow, httpflow):
        compiled = compile_apart(one.render(apart, Options("box")))
        assert max(deepest(decode(program)) for program in compiled.programs) <= STACK
