"""A kernel known by its name only gets what all builds of that name agree on, and is told that nothing verified it."""

import json
from pathlib import Path

import pytest

from kcompat.errors import KcompatError
from kcompat.fields import find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State, Verdict
from offset_db.by_release import Name, ReleaseResolver
from offset_db.exchange_names import named_kernel
from tests.kcompat.cli_tools import kcompat

DADDR, DPORT, NET = find("skc_daddr"), find("skc_dport"), find("skc_net")
RELEASE = "4.15.0-42-generic"
CONSTANTS = Path(__file__).parents[3] / "shared/data/datadog-constants.json"


def build(number, release=RELEASE, machine="x86_64"):
    return Kernel(f"{number:040x}", release, f"Linux version {release} (buildd) #1-Ubuntu SMP", machine)


def ask(db, *wanted, name=Name(RELEASE, "x86_64")):  # noqa: B008
    return {o.field: o for o in ReleaseResolver(db, name).resolve(None, wanted)}


def test_an_import_answers_with_its_name_and_little_confidence(db):
    db.record(named_kernel(RELEASE, "ubuntu-18.04", "amd64"), [Offset.known(NET, 48, "datadog")])
    answer = ask(db, NET, DADDR, name=Name(RELEASE, "x86_64", "ubuntu"))
    assert (answer[NET].offset, answer[NET].source, answer[NET].verdict, answer[NET].confidence) == (
        48, "datadog", Verdict.UNVERIFIED, 0.5)
    assert answer[DADDR].state is State.UNKNOWN


def test_builds_that_agree_answer_with_the_best_source(db):
    db.record(build(1), [Offset.known(NET, 48, "guess", confidence=0.8)])
    db.record(build(2), [Offset.known(NET, 48, "btf")])
    answer = ask(db, NET)[NET]
    assert (answer.offset, answer.source, answer.confidence) == (48, "btf", 0.9)
    assert answer.evidence["builds"] == [build(1).key, build(2).key]


def test_builds_that_differ_leave_it_unknown_with_the_candidates(db):
    db.record(build(1), [Offset.known(NET, 48, "btf"), Offset.known(DPORT, 12, "btf")])
    db.record(build(2), [Offset.known(NET, 56, "btf")])
    answers = ask(db, NET, DPORT)
    assert (answers[NET].state, answers[NET].candidates, answers[DPORT].offset) == (State.UNKNOWN, (48, 56), 12)
    assert answers[NET].verdict is Verdict.AMBIGUOUS and "btf says 56" in answers[NET].reason


def test_what_was_refuted_or_unsure_does_not_answer(db):
    db.record(build(1), [Offset.known(NET, 48, "btf"), Offset.unknown(DPORT, "guess", "two", candidates=(12, 14))])
    db.quarantine(build(1), NET, "btf", "refuted by an event")
    assert {o.state for o in ask(db, NET, DPORT).values()} == {State.UNKNOWN}


@pytest.mark.parametrize("name", [
    Name("4.15.0-43-generic", "x86_64"), Name(RELEASE, "aarch64"), Name(RELEASE, "x86_64", "debian"),
    Name(build(1).key, "x86_64")], ids=str)
def test_other_releases_machines_and_distributions_are_not_it(db, name):
    db.record(build(1), [Offset.known(NET, 48, "btf")])
    with pytest.raises(KcompatError, match="holds nothing of"):
        ReleaseResolver(db, name)


@pytest.mark.skipif(not CONSTANTS.exists(), reason="the shared data of real kernels is not here")
def test_an_ubuntu_release_is_resolved_from_datadogs_file(tmp_path):
    db = ("--db", tmp_path / "db")
    kcompat(*db, "db", "import", CONSTANTS, home=tmp_path)
    done = kcompat(*db, "resolve", "--kernel-release", RELEASE, "--distribution", "ubuntu", "--arch", "amd64", "--json",
                   "skc_net", "flowi4.saddr", "flowi6.dport", home=tmp_path)
    theirs = json.loads(CONSTANTS.read_text())
    row = next(k for k in theirs["kernels"] if k["uname_release"] == RELEASE and k["arch"] == "x86_64")
    said = theirs["constants"][row["cindex"]]
    assert done.returncode == 0, done.stderr
    assert [f["offset"] for f in json.loads(done.stdout)["fields"]] == [
        said["sock_common_skc_net_offset"], said["flowi4_saddr_offset"], said["flowi6_uli_offset"]]
    assert "unverified" in done.stderr


@pytest.mark.parametrize("options", [("--arch", "arm64"), ("--kernel-release", "4.4", "--source", "btf")])
def test_options_that_do_not_go_together_are_usage(tmp_path, options):
    done = kcompat("resolve", *options, home=tmp_path)
    assert done.returncode == 2 and "--kernel-release" in done.stderr
