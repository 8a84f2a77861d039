"""What `kcompat status` says in words of the cluster and of translated destinations."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from collector.instance import Lock, StatusSocket
from collector.status import ClusterStatus, DatasetStatus, KindStatus, NatStatus, SinkStatus, Status
from kcompat.cli_status import status_text
from kcompat.hook_status import HookState, HookStatus
from tests.kcompat.cli_tools import NOBODY, environment, home_of_nobody, needs_nobody, one_line

NOTHING = Status(1, "box", "6.1", {"btf": 27}, 1000.0, 2000.0, 500.0, 60.0, 3, 1, (), ())
PODS, JOBS = KindStatus("pods", 5, True, 3.5, 1), KindStatus("jobs", 0, False, None, 0)
CLUSTER = ClusterStatus("https://api:6443", True, 0, "", (PODS._replace(failures=0),))
HOOK = HookStatus("kprobe__insert", "__nf_conntrack_hash_insert", HookState.ATTACHED)
NAT = NatStatus(True, 4, 0, 2, 7, {"nat events": 0}, "ctnetlink", "no kprobes")
TOLD = NatStatus(True, 0, 0, 2, 7, {"nat events": 0}, "nf_conn by kprobes", hooks=(HOOK,))


@pytest.fixture
def asked():
    """asked(directory of root's collector, **environment) -> `kcompat status` of somebody who is not root."""
    with home_of_nobody() as home:
        def ask(system, **more):
            code = ("import sys; from pathlib import Path; import collector.instance as instance\n"
                    "from kcompat.cli import main\ninstance.SYSTEM = Path(sys.argv.pop(1)); main(prog_name='kcompat')")
            known = {name: value for name, value in environment(home).items() if name != "KCOMPAT_RUN"}
            return subprocess.run([*NOBODY, sys.executable, "-c", code, system, "status"],
                                  env=known | {"XDG_RUNTIME_DIR": str(home)} | more, cwd="/", capture_output=True,
                                  text=True, timeout=60)

        ask.home = home
        yield ask


@needs_nobody
def test_a_collector_that_only_root_may_ask_is_told_apart_from_none(asked):
    system = asked.home / "system"
    assert (done := asked(system)).returncode == 2 and "no kcompat collect runs here" in one_line(done.stderr)

    system.mkdir(0o700)
    socket = StatusSocket(system, dict)
    try:
        for mode in (0o700, 0o755):  # as the unit has it, and where others may at least look in
            system.chmod(mode)
            done = asked(system)
            assert done.returncode == 4
            assert one_line(done.stderr) == f"kcompat: {system}/kcompat.sock: only root may ask: run it with sudo"
        assert asked(system, KCOMPAT_RUN=str(asked.home)).returncode == 2  # what is chosen is all that is looked at
    finally:
        socket.close()
    assert asked(system).returncode == 2


@needs_nobody
def test_a_collector_that_has_ended_is_none_for_others_too(asked):
    Lock(asked.home / "system").close()

    assert asked(asked.home / "system").returncode == 2
    assert (asked.home / "system/kcompat.pid").stat().st_mode & 0o777 == 0o600


def last_lines(**known):
    told = dataclasses.replace(NOTHING, **known).as_json()
    return status_text(told, 2000.0).splitlines()[3:]


def test_what_nobody_asked_for_is_not_told_of():
    assert last_lines() == []


@pytest.mark.parametrize("cluster, words", [
    (CLUSTER, "told of: 5 pods of https://api:6443, heard 4 s ago"),
    (dataclasses.replace(CLUSTER, told=False, failures=2, error="jobs: 403 Forbidden", kinds=(PODS, JOBS)),
     "not told of, too little is known: 5 pods of https://api:6443, heard 4 s ago; not listed: jobs; "
     "3 failures, the last: jobs: 403 Forbidden"),
    (ClusterStatus("", False, 1, "client: no /root/.kube/config", (JOBS,)),
     "nothing heard of an API server yet; 1 failures, the last: client: no /root/.kube/config")])
def test_how_well_the_cluster_is_known(cluster, words):
    assert last_lines(kubernetes=cluster) == [f"kubernetes: {words}"]


@pytest.mark.parametrize("nat, words", [
    (NAT, "7 connections translated, to 2 destinations; from ctnetlink in 4 namespaces (no programs in the tracker: "
          "no kprobes); lost: nothing"),
    (dataclasses.replace(NAT, refused=1, why="", lost={"nat events": 3}),
     "7 connections translated, to 2 destinations; from ctnetlink in 4 namespaces, 1 cannot be asked; "
     "lost: 3 nat events"),
    (TOLD, "7 connections translated, to 2 destinations; from nf_conn by kprobes; lost: nothing"),
    (dataclasses.replace(NAT, tracking=False), "this kernel tracks no connections")])
def test_what_is_known_of_translations(nat, words):
    lines = last_lines(nat=nat)
    begin = next(number for number, line in enumerate(lines) if line.startswith("nat: "))
    assert max(map(len, lines[begin:])) <= 80
    assert " ".join(line.strip() for line in lines[begin:]) == f"nat: {words}"


def test_what_maps_take_is_said_of_those_that_have_any():
    hooks = (HOOK,)
    flow = DatasetStatus("netflow", HookState.ATTACHED, hooks=hooks, map_bytes=142_425_424)
    sizes = (flow, dataclasses.replace(flow, dataset="httpflow", map_bytes=None),
             dataclasses.replace(flow, dataset="dnsflow", map_bytes=0), DatasetStatus("bash", HookState.MISSING, "no"))
    told = dataclasses.replace(NOTHING, datasets=sizes).as_json()

    assert "kernel memory of maps: netflow 142.4 MB, httpflow unknown\n" in status_text(told, 2000.0)


def test_an_older_collector_says_what_it_knows():
    """It runs on while kcompat is upgraded, and what has a default here is what it may not know."""
    told = dataclasses.replace(NOTHING, nat=NAT, sinks=(SinkStatus("jsonl:x", 1, 0, 0),), datasets=(
        DatasetStatus("netflow", HookState.ATTACHED, hooks=(HOOK,), maps=()),)).as_json()
    (netflow,), (sink,) = told["datasets"], told["sinks"]
    for one, name in ((told, "kubernetes"), (netflow, "map_bytes"), (netflow, "lost"), (netflow, "reason"),
                      (sink, "lag_s"), (told["nat"], "why")):
        del one[name]
    assert "kernel memory of maps: netflow unknown\n" in status_text(told, 2000.0)
    del netflow["hooks"], told["nat"]
    assert re.search(r"^netflow +attached$", status_text(told, 2000.0), re.M)


def test_the_programs_that_tell_of_translations_are_in_the_table():
    told = dataclasses.replace(NOTHING, nat=TOLD).as_json()
    assert json.loads(json.dumps(told["nat"]["hooks"])) == [
        {"program": "kprobe__insert", "hook": "__nf_conntrack_hash_insert", "state": "attached", "reason": ""}]
    assert re.search(r"^nat +kprobe__insert +__nf_conntrack_hash_insert +attached$", status_text(told, 2000.0), re.M)
