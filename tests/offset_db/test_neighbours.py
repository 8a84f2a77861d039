"""The nearest known kernels: of the same machine and series, the same distribution first, by what lies between."""

import json
import os
from dataclasses import replace

import pytest

from guessers.guess import replay, solve
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from offset_db.db import Database
from offset_db.exchange_names import named_kernel
from offset_db.neighbours import by_distance, nearest
from tests.guessers import corpus
from tests.kcompat.cli_tools import kcompat

NET, DPORT = find("skc_net"), find("skc_dport")


def kernel(release, machine="x86_64"):
    return Kernel(f"{hash((release, machine)) & (1 << 64) - 1:040x}", release, "", machine)


HERE = kernel("4.15.0-42-generic")


def test_the_nearest_comes_first_and_numbers_are_numbers():
    releases = ["4.15.0-142-generic", "4.15.0-200-amd64", "4.15.0-44-generic", "4.15.0-42-amd64", "4.15.0-43-generic"]
    assert [k.release for k in by_distance(HERE, list(map(kernel, releases)))] == [
        "4.15.0-43-generic", "4.15.0-44-generic", "4.15.0-142-generic", "4.15.0-42-amd64", "4.15.0-200-amd64"]


def test_each_field_is_told_by_the_nearest_that_knows_it(db):
    db.record(kernel("4.15.0-45-generic"), [Offset.known(NET, 48, "btf")])
    db.record(kernel("4.15.0-99-generic"), [Offset.known(NET, 56, "btf"), Offset.known(DPORT, 12, "guess")])
    db.record(named_kernel("4.15.0-43-generic", "ubuntu-18.04", "amd64"), [Offset.absent(NET, "datadog", "gone")])
    assert nearest(db, HERE) == {NET: ("4.15.0-45-generic", 48), DPORT: ("4.15.0-99-generic", 12)}


@pytest.mark.parametrize("other", [
    HERE, kernel("4.15.0-45-generic", "aarch64"), kernel("4.150.0-45-generic"), kernel("4.1.0-1-generic"),
    kernel("5.15.0-45-generic")])
def test_another_series_or_machine_is_no_neighbour(db, other):
    db.record(other, [Offset.known(NET, 48, "btf")])
    assert nearest(db, HERE) == {}
    assert nearest(db, replace(HERE, release="custom")) == {}


def test_what_was_refuted_or_is_disputed_is_not_told(db):
    one = kernel("4.15.0-45-generic")
    db.record(one, [Offset.known(NET, 48, "btf"), Offset.known(DPORT, 12, "btf"), Offset.known(DPORT, 14, "guess")])
    db.quarantine(one, NET, "btf", "refuted by an event")
    assert nearest(db, HERE) == {}


@pytest.mark.parametrize("wrong", [0, 4, 8, -8])
def test_a_wrong_neighbour_changes_no_answer(wrong):
    """Of a recorded kernel, whatever is said of every field: verdict, place and confidence stay."""
    recording = corpus.recording(corpus.NAMES[0])
    before = replay(recording).offsets
    poison = {f: ("6.18.43", (o.offset or 96) + wrong) for f, o in before.items()}
    _, after = solve(CATALOGUE, recording.haul, replace(recording.setting, near=poison))
    for answer in after:
        assert replace(answer, evidence={}) == replace(before[answer.field], evidence={})
        if answer.state is not State.ABSENT:
            assert answer.evidence["nearest_known"] == f"{poison[answer.field][1]} in 6.18.43"


def test_among_equals_the_neighbours_place_is_named_first_and_still_not_chosen():
    recording = corpus.recording(corpus.NAMES[0])
    # With one connection's socket alone many places agree.
    haul = replace(recording.haul, socks=recording.haul.socks[:2], followed={})
    field = find("sk_protocol")
    _, answers = solve(CATALOGUE, haul, recording.setting)
    places = next(o for o in answers if o.field is field).candidates
    assert len(places) > 1
    _, answers = solve(CATALOGUE, haul, replace(recording.setting, near={field: ("6.18.43", places[1])}))
    answer = next(o for o in answers if o.field is field)
    assert answer.offset is None and answer.candidates == (places[1], places[0], *places[2:])


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_a_poisoned_database_is_told_and_not_believed(tmp_path):
    running = Kernel.running()
    path = tmp_path / "poisoned.db"
    with Database.open(path) as db:
        db.record(replace(running, build_id="1" * 40), [Offset.known(f, 8 * n + 4096, "btf")
                                                        for n, f in enumerate(CATALOGUE)])

    def guessed(*options):
        done = kcompat("--db", path, "guess", *options, "--json", home=tmp_path)
        return json.loads(done.stdout)["fields"]

    def verdicts(fields):
        return {(f["struct"], f["member"]): (f["verdict"], f["offset"]) for f in fields}

    assert verdicts(guessed()) == verdicts(guessed("--no-record"))
    (told,) = guessed("--explain", "skc_dport")
    assert told["offset"] == 12 and told["evidence"]["nearest_known"] == f"4112 in {running.release}"
